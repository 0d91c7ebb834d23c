"""Config sections of improving: the optimizer, the reinforcement-learning objective, and SFT."""

from typing import Literal, Self

from pydantic import Field, model_validator

from envs.config import Section
from envs.errors import ConfigError
from learner.reward_config import SoftOverlong, TrialCost
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
CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

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
"""Options of `[learner]` that only some values of another use. What differs from its default was
asked for; the default was not, for a run's own config.toml says it too."""


class OptimizerSection(Section):
    """What `[learner]` and `[sft]` both say: how weights are sharded and moved."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer state, 2 gradients too, 3 weights too."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon on hidden matrices, AdamW on the rest; needs `zero_stage = 0` and float32."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(default=0.02, gt=0)
    """Peak learning rate of the matrices under `muon`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's first and second moment per optimizer step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled, on matrices only; norms and biases never decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global 2-norm."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps in which the learning rate rises linearly."""
    micro_batch_tokens: int = Field(default=4096, gt=0)
    """Tokens of one packed forward and backward pass; a longer episode makes its own pass."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, about a third more time."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """`cpu`: optimizer state lies in host memory and the step runs there; needs `zero_stage` 1 to 3
    (arXiv 2101.06840)."""
    offload_params: Literal["none", "cpu"] = "none"
    """`cpu`: weights lie in host memory and come layer by layer; needs `zero_stage = 3` and
    `offload_optimizer = "cpu"`."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """A collective that waits longer for another rank fails."""
    max_skipped_steps: int = Field(default=3, ge=0)
    """Steps in a row that may make no update because a logit, loss or gradient was not finite; one
    more ends the training. A step of several updates is skipped when all of them are."""

    @property
    def entropy_gradient(self) -> bool:
        """Whether the loss needs entropies with a gradient."""
        return False

    @model_validator(mode="after")
    def _muon_is_unsharded(self) -> Self:
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


class PhaseWeights(Section):
    """Loss weight of a sampled token by the phase it belongs to."""

    trial: float = Field(default=1.0, ge=0)
    """Tokens of exploratory turns."""
    experience: float = Field(default=1.0, ge=0)
    """Tokens of what the policy writes down after its trials."""
    execution: float = Field(default=1.0, ge=0)
    """Tokens of the turns that answer."""


class LearnerConfig(OptimizerSection):
    """`[learner]`: one reinforcement-learning step."""

    ranks: int = Field(default=1, ge=1)
    """Learner processes, one per device."""
    advantage: Estimator = "grpo"
    """Within groups: `grpo` divides by std + eps, `grpo_no_std` (Dr. GRPO) does not, `rloo` leaves
    one out, `maxrl` divides by mean + eps. Over the step: `grpo_batch_std` (Lite PPO) divides by
    the std of all rewards, `gpg` makes up for groups that teach nothing, `reinforce_pp_baseline`
    whitens what is left of the group's mean, `reinforce_pp` (REINFORCE++) knows no groups."""
    advantage_eps: float = Field(default=0.1, ge=0)
    """Added to the standard deviation, or to the mean under `maxrl`."""
    advantage_ddof: Literal[0, 1] = 0
    """Standard deviation of the population (0), or of the sample (1: TRL, verl, OpenRLHF)."""
    drop_zero_variance: bool = True
    """Leave out groups whose rewards are all equal; off, they stay with advantage 0."""
    mask_truncated: bool = False
    """Keep truncated episodes out of the loss; their reward still counts in the baseline."""
    credit: Literal["episode", "phase"] = "episode"
    """`episode`: one advantage for all tokens. `phase`: execution tokens by the answer and the
    penalty for malformed execution turns; trial and experience tokens by the answer, the penalty
    for malformed trial turns, and the costs of trials. Each compared within the group."""
    trial_cost: TrialCost = TrialCost()
    """A price on trial calls where the group mostly succeeds."""
    overlong: SoftOverlong = SoftOverlong()
    """A punishment of length that begins before the limit."""
    loss: Literal["token", "gspo", "gspo_token", "cispo", "sapo", "reinforce"] = "token"
    """`token`: PPO clip per token; `gspo`: one ratio per sequence; `gspo_token`: the same with a
    gradient and an advantage per token; `cispo`: the clipped ratio is a constant weight; `sapo`: a
    sigmoid gate instead of a clip; `reinforce`: no ratio."""
    clip_low: float = Field(default=0.2, ge=0)
    """Ratios below 1 - clip_low are clipped; 1 or more never."""
    clip_high: float = Field(default=0.25, ge=0)
    """Ratios above 1 + clip_high are clipped."""
    dual_clip: float = Field(default=0.0, ge=0)
    """Bound on the ratio of negative advantages (losses `token`, `gspo`, `gspo_token`); above
    1 + clip_high, or 0 for off."""
    sapo_tau_positive: float = Field(default=1.0, gt=0)
    """`sapo` only: steepness of the gate for positive advantages."""
    sapo_tau_negative: float = Field(default=1.05, gt=0)
    """`sapo` only: the same for negative ones."""
    ratio_reference: Literal["behaviour", "proximal"] = "behaviour"
    """Denominator of the ratio: the sampler's logprobs, or the learner's own at the start of
    the step; then importance weights proximal / behaviour correct between the two."""
    tis_mode: CorrectionMode = "token_truncate"
    """`proximal` only: `token_truncate` (TIS) bounds the weight of every token, `token_mask`
    (IcePop) drops tokens outside the bounds; `sequence_truncate` and `sequence_mask` (MIS) do so
    with the product over the episode."""
    tis_cap: float = Field(default=2.0, gt=0)
    """`proximal` only: upper bound of the importance weight proximal / behaviour."""
    tis_floor: float = Field(default=0.0, ge=0)
    """`proximal` only: lower bound."""
    max_sequence_dlogp: float = Field(default=0.0, ge=0)
    """Mask an episode whose mean |learner - behaviour| logprob per token exceeds this; 0 is off."""
    max_negative_kl: float = Field(default=0.0, ge=0)
    """Mask negative advantages in episodes whose mean behaviour - learner logprob per token exceeds
    this (DeepSeek-V3.2's off-policy sequence masking); 0 is off."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """Mean over tokens (DAPO), mean of per-episode means (GRPO), or sums divided by
    `constant_length` (Dr. GRPO; with 1 plain sums, as LUSPO)."""
    constant_length: int = Field(default=1024, gt=0)
    """Tokens by which `constant` divides each episode's sum."""
    phase_weights: PhaseWeights = PhaseWeights()
    """Loss weight by phase."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus, aggregated as the loss is; 0 is off."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty to the weights the run started from; 0 keeps no reference copy."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators; as a loss k1 has no useful gradient on-policy and k2 the right one."""
    kl_unbiased: bool = False
    """Multiply the penalty by the token's ratio, which makes its gradient unbiased
    (DeepSeek-V3.2)."""
    ppo_epochs: int = Field(default=1, ge=1)
    """Passes over the episodes of one step."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per pass."""
    decay_steps: int = Field(default=0, ge=0)
    """Optimizer steps after warm-up in which the rate falls linearly to zero; 0 keeps it."""

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
            if found != default and getattr(self, user) not in values:
                raise ValueError(
                    f"{key} = {found!r} does nothing with {user} = {getattr(self, user)!r}: set "
                    f"{user} to {' or '.join(map(repr, values))}, or {key} to {default!r}"
                )
        for key in ("kl_unbiased", "kl_estimator"):
            found, default = getattr(self, key), type(self).model_fields[key].default
            if self.kl_coef == 0 and found != default:
                raise ValueError(
                    f"{key} = {found!r} does nothing with kl_coef = 0: set kl_coef above 0, or "
                    f"{key} to {default!r}"
                )
        if self.loss == "gspo" and self.credit == "phase":
            raise ValueError(
                "expected one advantage per sequence with loss = 'gspo', found credit = 'phase': "
                "set loss = 'gspo_token'"
            )
        return self


class SftConfig(OptimizerSection):
    """`[sft]`: imitation of the tokens under the loss mask."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the set, each in its own order."""
    batch_tokens: int = Field(default=2048, gt=0)
    """Tokens of one optimizer step, prompts and observations included, over all ranks."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Optimizer steps between checkpoints; a resumed SFT repeats at most so many."""
    decay_fraction: float = Field(default=0.4, ge=0, le=1)
    """Share of the steps at the end over which the learning rate falls linearly to zero."""
    phase_weights: PhaseWeights = PhaseWeights()
    """Loss weight by phase."""


def check_sampling_for_training(episode: EpisodeConfig) -> None:
    """Refuse sampling whose logprobs the loss cannot correct. Raises ConfigError."""
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
    """Refuse what adapters cannot be trained with. Raises ConfigError."""
    if not lora.rank:
        return
    if section.optimizer == "muon":
        raise ConfigError(
            f"expected optimizer = 'adamw' with model.lora.rank = {lora.rank}, found 'muon': it "
            "makes the update of a weight orthogonal, and adapters train two factors of one"
        )
    if isinstance(section, LearnerConfig) and lora.dropout > 0:
        raise ConfigError(
            f"expected model.lora.dropout = 0 in reinforcement learning, found {lora.dropout:g}: "
            "the policy that is trained would not be the one that sampled; keep it for SFT"
        )
