"""Config sections of improving: the optimizer, the reinforcement-learning objective, and SFT."""

from typing import Literal, Self

from pydantic import Field, model_validator

from envs.config import Section
from envs.errors import ConfigError
from rollout.config import EpisodeConfig


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
    advantage: Literal["grpo", "grpo_no_std", "rloo"] = "grpo"
    """Within groups: `grpo` divides by std + eps, `grpo_no_std` (Dr. GRPO) does not, `rloo` leaves
    one out."""
    advantage_eps: float = Field(default=0.1, ge=0)
    """Added to the group's standard deviation under `grpo`."""
    drop_zero_variance: bool = True
    """Leave out groups whose rewards are all equal; off, they stay with advantage 0."""
    mask_truncated: bool = False
    """Keep truncated episodes out of the loss; their reward still counts in the baseline."""
    loss: Literal["token", "gspo", "cispo"] = "token"
    """`token`: PPO clip per token; `gspo`: one ratio per sequence; `cispo`: the clipped ratio is a
    constant weight."""
    clip_low: float = Field(default=0.2, ge=0)
    """Ratios below 1 - clip_low are clipped."""
    clip_high: float = Field(default=0.25, ge=0)
    """Ratios above 1 + clip_high are clipped."""
    dual_clip: float = Field(default=0.0, ge=0)
    """Bound on the ratio of negative advantages (loss `token`); above 1, or 0 for off."""
    ratio_reference: Literal["behaviour", "proximal"] = "behaviour"
    """Denominator of the ratio: the sampler's logprobs, or the learner's own at the start of
    the step; then `tis_cap` corrects between the two."""
    tis_cap: float = Field(default=2.0, gt=0)
    """`proximal` only: cap on the importance weight proximal / behaviour."""
    max_sequence_dlogp: float = Field(default=0.0, ge=0)
    """Mask an episode whose mean |learner - behaviour| logprob per token exceeds this; 0 is off."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """Mean over tokens, mean of per-episode means, or sums divided by `constant_length`."""
    constant_length: int = Field(default=1024, gt=0)
    """Tokens by which `constant` divides each episode's sum."""
    phase_weights: PhaseWeights = PhaseWeights()
    """Loss weight by phase."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty to the weights the run started from; 0 keeps no reference copy."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators; as a loss k1 has no useful gradient on-policy and k2 the right one."""
    ppo_epochs: int = Field(default=1, ge=1)
    """Passes over the episodes of one step."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per pass."""
    decay_steps: int = Field(default=0, ge=0)
    """Optimizer steps after warm-up in which the rate falls linearly to zero; 0 keeps it."""

    @model_validator(mode="after")
    def _dual_clip_above_one(self) -> Self:
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"expected dual_clip = 0 (off) or above 1, found {self.dual_clip}")
        return self


class SftConfig(OptimizerSection):
    """`[sft]`: imitation of the tokens under the loss mask."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the set, each in its own order."""
    batch_tokens: int = Field(default=2048, gt=0)
    """Tokens of one optimizer step, prompts and observations included, over all ranks."""
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
