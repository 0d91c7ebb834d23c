"""Config sections of the learner: the optimizer, the RL objective, and SFT."""

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from envs.config import Section
from envs.errors import ConfigError
from learner.credit_config import PhaseWeights, SoftOverlong, TrialCost, refuse_ignored
from rollout.config import EpisodeConfig, LoraConfig

Estimator = Literal[
    "grpo",
    "grpo_no_std",
    "grpo_batch_std",
    "rloo",
    "maxrl",
    "gpg",
    "reinforce_pp_baseline",
    "reinforce_pp",
]
LossName = Literal["token", "gspo", "gspo_token", "cispo", "sapo", "reinforce"]
CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

_FUNCTION_PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def is_function_path(value: str) -> bool:
    """Whether `value` has the form `module:function`."""
    return _FUNCTION_PATH.fullmatch(value) is not None


def _name_or_function(names: tuple[str, ...]) -> AfterValidator:
    def check(value: str) -> str:
        if value in names or is_function_path(value):
            return value
        raise ValueError(
            f"expected {', '.join(map(repr, names))} or a function as 'module:function', "
            f"found {value!r}"
        )

    return AfterValidator(check)


_CLIPPED = ("token", "gspo", "gspo_token")
_USED_WITH: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("clip_low", "loss", (*_CLIPPED, "cispo")),
    ("clip_high", "loss", (*_CLIPPED, "cispo")),
    ("dual_clip", "loss", _CLIPPED),
    ("sapo_tau_positive", "loss", ("sapo",)),
    ("sapo_tau_negative", "loss", ("sapo",)),
    ("tis_mode", "ratio_reference", ("proximal",)),
    ("tis_cap", "ratio_reference", ("proximal",)),
    ("tis_floor", "ratio_reference", ("proximal",)),
    ("constant_length", "aggregation", ("constant",)),
)
"""(option, key, values of that key which use the option). Setting an option that the chosen value
ignores is refused. A value equal to the default is accepted: a run's config.toml has every key."""
_IGNORED_BY_FUNCTIONS = frozenset({"sapo_tau_positive", "sapo_tau_negative"})
"""Options that a custom loss does not receive."""

_LEAST_MAXRL_EPS = 0.01


class OptimizerSection(Section):
    """Common keys of `[learner]` and `[sft]`: how weights are sharded and updated."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer state, 2 gradients too, 3 weights too."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon on hidden matrices, AdamW on the rest; needs `zero_stage = 0` and float32."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(default=0.02, gt=0)
    """Peak learning rate of the hidden matrices with `optimizer = "muon"`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's first and second moment per optimizer step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices; norms and biases have none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global 2-norm."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly."""
    micro_batch_tokens: int = Field(default=4096, gt=0)
    """Tokens of one packed forward and backward pass; a longer episode gets a pass of its own."""
    packing: Literal["auto", "off"] = "auto"
    """`auto` puts several episodes into one pass where attention alone mixes positions, and one
    where convolutions, linear attention or recurrent layers do. `off` always puts one."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, about a third more time."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """`cpu`: optimizer state is in host memory and the update runs there; needs `zero_stage` 1 to 3
    (arXiv 2101.06840)."""
    offload_params: Literal["none", "cpu"] = "none"
    """`cpu`: weights are in host memory and are fetched layer by layer; needs `zero_stage = 3` and
    `offload_optimizer = "cpu"`."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """Timeout of a collective operation that waits for another rank, in seconds."""
    max_skipped_steps: int = Field(default=3, ge=0)
    """Consecutive steps that may make no update because a logit, loss or gradient was not finite;
    one more ends the training. A step of several updates counts if all of them were skipped."""

    @property
    def entropy_gradient(self) -> bool:
        """Whether the loss needs entropies with a gradient."""
        return False

    @model_validator(mode="after")
    def _muon_is_unsharded(self) -> Self:
        default = OptimizerSection.model_fields["muon_lr"].default
        if self.optimizer != "muon" and self.muon_lr != default:
            raise ValueError(
                f"muon_lr = {self.muon_lr:g} does nothing with optimizer = {self.optimizer!r}: set "
                f"optimizer = 'muon', or muon_lr to {default:g}; the rate of AdamW is lr"
            )
        if self.optimizer == "muon" and self.zero_stage != 0:
            raise ValueError(
                f"optimizer = 'muon' works on whole matrices: expected zero_stage = 0, found "
                f"{self.zero_stage}; set zero_stage = 0 or optimizer = 'adamw'"
            )
        return self

    @model_validator(mode="after")
    def _offload_is_sharded(self) -> Self:
        if self.offload_optimizer == "cpu" and self.zero_stage == 0:
            raise ValueError("offload_optimizer = 'cpu' needs zero_stage 1 to 3, found 0")
        if self.offload_params == "cpu" and self.zero_stage != 3:
            raise ValueError(
                f"offload_params = 'cpu' needs zero_stage = 3, found {self.zero_stage}: only "
                "sharded weights can be fetched layer by layer"
            )
        if self.offload_params == "cpu" and self.offload_optimizer == "none":
            raise ValueError(
                "offload_params = 'cpu' needs offload_optimizer = 'cpu': the step runs where the "
                "weights lie"
            )
        return self


class LearnerConfig(OptimizerSection):
    """`[learner]`: the RL step."""

    ranks: int = Field(default=1, ge=1)
    """Learner processes, one per device."""
    advantage: Estimator = "grpo"
    """Within groups: `grpo` divides by std + eps, `grpo_no_std` (Dr. GRPO) does not, `rloo`
    compares with the mean of the other episodes, `maxrl` divides by mean + eps. Over the step:
    `grpo_batch_std` (Lite PPO) divides by the std of all rewards, `gpg` rescales for groups without
    variance, `reinforce_pp_baseline` whitens reward minus group mean, `reinforce_pp` (REINFORCE++)
    ignores groups."""
    advantage_eps: float = Field(default=0.1, ge=0)
    """Added to the standard deviation, or to the mean with `maxrl`."""
    advantage_ddof: Literal[0, 1] = 0
    """Standard deviation of the population (0), or of the sample (1: TRL, verl, OpenRLHF)."""
    drop_zero_variance: bool = True
    """Exclude groups whose rewards are all equal; `false` keeps them with advantage 0."""
    mask_truncated: bool = False
    """Exclude truncated episodes from the loss; their reward still counts in the baseline."""
    credit: Literal["episode", "phase"] = "episode"
    """`episode`: one advantage for all tokens. `phase`: execution tokens by the answer and the
    penalty for malformed execution turns; trial and experience tokens by the answer, the penalty
    for malformed trial turns, and the costs of trials. Each is compared within the group."""
    trial_cost: TrialCost = TrialCost()
    """Cost of trial calls in groups that mostly succeed."""
    overlong: SoftOverlong = SoftOverlong()
    """Length penalty that starts before the limit."""
    loss: Annotated[str, _name_or_function(get_args(LossName))] = "token"
    """`token`: PPO clip per token; `gspo`: one ratio per sequence; `gspo_token`: the same with a
    gradient and an advantage per token; `cispo`: the clipped ratio is a constant weight; `sapo`: a
    sigmoid gate instead of a clip; `reinforce`: no ratio; `module:function`: your own, which takes
    `LossInputs` and returns (loss, clipped) per token."""
    clip_low: float = Field(default=0.2, ge=0)
    """Ratios below 1 - clip_low are clipped; with 1 or more, none are."""
    clip_high: float = Field(default=0.25, ge=0)
    """Ratios above 1 + clip_high are clipped."""
    dual_clip: float = Field(default=0.0, ge=0)
    """Bound on the ratio of negative advantages (losses `token`, `gspo`, `gspo_token`); above
    1 + clip_high, or 0 for off."""
    sapo_tau_positive: float = Field(default=1.0, gt=0)
    """`sapo` only: steepness of the gate for positive advantages."""
    sapo_tau_negative: float = Field(default=1.05, gt=0)
    """`sapo` only: the same for negative advantages."""
    ratio_reference: Literal["behaviour", "proximal"] = "behaviour"
    """Denominator of the ratio: the sampler's logprobs, or (`proximal`) the learner's at the start
    of the step, with importance weights proximal / behaviour as a correction."""
    tis_mode: Annotated[str, _name_or_function(get_args(CorrectionMode))] = "token_truncate"
    """`proximal` only: `token_truncate` (TIS) bounds the weight of every token, `token_mask`
    (IcePop) drops tokens outside the bounds; `sequence_truncate` and `sequence_mask` (MIS) do so
    with the product over the episode; `module:function`: your own, which takes `CorrectionInputs`
    and returns (weight, bounded) per token."""
    tis_cap: float = Field(default=2.0, gt=0)
    """`proximal` only: upper bound of the importance weight proximal / behaviour."""
    tis_floor: float = Field(default=0.0, ge=0)
    """`proximal` only: lower bound."""
    max_sequence_dlogp: float = Field(default=0.0, ge=0)
    """Mask the policy loss, not the KL penalty, of episodes whose mean |learner - behaviour|
    logprob per token exceeds this; 0 is off."""
    max_negative_kl: float = Field(default=0.0, ge=0)
    """Mask the policy loss, not the KL penalty, of negative advantages in episodes whose mean
    behaviour - learner logprob per token exceeds this (DeepSeek-V3.2's off-policy sequence
    masking); 0 is off."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """Mean over tokens (DAPO), mean of per-episode means (GRPO), or sums divided by
    `constant_length` (Dr. GRPO; with 1 plain sums, as LUSPO)."""
    constant_length: int = Field(default=1024, gt=0)
    """Tokens by which `constant` divides each episode's sum."""
    phase_weights: PhaseWeights = PhaseWeights()
    """Loss weight by phase."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus, aggregated like the loss; 0 is off."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty to the initial weights; 0 keeps no reference copy."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators. As a loss over the policy's own samples, k1 has no gradient on
    average, k2 that of KL(policy || initial weights), and k3 that of the reverse KL(initial weights
    || policy); `kl_unbiased` gives k1 and k3 the gradient of k2, on other samples too."""
    kl_unbiased: bool = False
    """Multiply the penalty by the token's ratio to the sampler, which makes the gradient of k1 and
    k3 unbiased (DeepSeek-V3.2); refused for k2."""
    ppo_epochs: int = Field(default=1, ge=1)
    """Passes over the episodes of one step."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per pass."""
    decay_steps: int = Field(default=0, ge=0)
    """Optimizer steps after warm-up over which the rate falls linearly to zero; 0 keeps it."""

    @property
    def entropy_gradient(self) -> bool:
        """Whether the loss needs entropies with a gradient."""
        return self.entropy_coef > 0

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if 0 < self.dual_clip <= 1 + self.clip_high:
            raise ValueError(
                f"expected dual_clip = 0 (off) or above 1 + clip_high = {1 + self.clip_high:g}, "
                f"found {self.dual_clip:g}"
            )
        if self.tis_floor >= self.tis_cap:
            raise ValueError(
                f"expected tis_floor below tis_cap = {self.tis_cap:g}, found {self.tis_floor:g}"
            )
        return self

    @model_validator(mode="after")
    def _options_that_would_do_nothing(self) -> Self:
        for key, user, values in _USED_WITH:
            found, default = getattr(self, key), type(self).model_fields[key].default
            chosen = getattr(self, user)
            custom = is_function_path(chosen) and key not in _IGNORED_BY_FUNCTIONS
            if found != default and chosen not in values and not custom:
                raise ValueError(
                    f"{key} = {found!r} does nothing with {user} = {chosen!r}: set "
                    f"{user} to {' or '.join(map(repr, values))}, or {key} to {default!r}"
                )
        refuse_ignored(self, "kl_coef", ("kl_unbiased", "kl_estimator"))
        if self.credit == "phase" and self.trial_cost.per_call and not self.phase_weights.parts[0]:
            raise ValueError(
                f"trial_cost.per_call = {self.trial_cost.per_call:g} does nothing with credit = "
                "'phase' and phase_weights.trial = phase_weights.experience = 0: it is charged to "
                "tokens that are not trained; set phase_weights.trial above 0, or credit = "
                "'episode'"
            )
        if self.advantage == "maxrl" and 0 < self.advantage_eps < _LEAST_MAXRL_EPS:
            raise ValueError(
                f"expected advantage_eps = 0 or at least {_LEAST_MAXRL_EPS:g} with advantage = "
                f"'maxrl', found {self.advantage_eps:g}: groups without a success would be divided "
                "by it alone, and outweigh all others; set it to 0 or 0.1"
            )
        if self.kl_unbiased and self.kl_estimator == "k2":
            raise ValueError(
                "expected kl_estimator = 'k1' or 'k3' with kl_unbiased = true, found 'k2': times "
                "the ratio its gradient is another one; set kl_estimator = 'k3', or kl_unbiased = "
                "false"
            )
        if self.loss == "gspo" and self.credit == "phase":
            raise ValueError(
                "expected one advantage per sequence with loss = 'gspo', found credit = 'phase': "
                "set loss = 'gspo_token'"
            )
        return self


class SftConfig(OptimizerSection):
    """`[sft]`: supervised fine-tuning on the tokens under the loss mask."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the dataset, each in its own order."""
    batch_tokens: int = Field(default=2048, gt=0)
    """Tokens of one optimizer step over all ranks, prompts and observations included."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Optimizer steps between checkpoints; a resumed SFT repeats at most this many."""
    decay_fraction: float = Field(default=0.4, ge=0, le=1)
    """Fraction of all steps, at the end, over which the learning rate falls linearly to zero."""
    phase_weights: PhaseWeights = PhaseWeights()
    """Loss weight by phase."""


def check_sampling_for_training(episode: EpisodeConfig) -> None:
    """Raise ConfigError for sampling whose logprobs the loss cannot correct."""
    if episode.temperature == 0:
        raise ConfigError(
            "expected episode.temperature above 0 for training, found 0: greedy episodes explore "
            "nothing; set it to 1"
        )
    if episode.top_p < 1 or episode.top_k > 0:
        raise ConfigError(
            f"expected episode.top_p = 1 and episode.top_k = 0 for training, found top_p = "
            f"{episode.top_p} and top_k = {episode.top_k}: truncated sampling biases the ratio; "
            f"truncate in evaluation only"
        )


def check_adapters(lora: LoraConfig, section: OptimizerSection) -> None:
    """Raise ConfigError for options that adapters cannot be trained with."""
    if not lora.rank:
        return
    if section.optimizer == "muon":
        raise ConfigError(
            f"expected optimizer = 'adamw' with model.lora.rank = {lora.rank}, found 'muon': it "
            "orthogonalises the update of a weight matrix, and adapters train two factors of it"
        )
    if isinstance(section, LearnerConfig) and lora.dropout > 0:
        raise ConfigError(
            f"expected model.lora.dropout = 0 in reinforcement learning, found {lora.dropout:g}: "
            "dropout would train a different policy than the one that sampled; use it in SFT only"
        )
