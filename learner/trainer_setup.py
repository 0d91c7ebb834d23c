"""Arguments of one learner rank; imports no torch, for the process that only starts it."""

from dataclasses import dataclass

from learner.config import LearnerConfig, SftConfig
from learner.signing import UNSIGNED, Signing
from rollout.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSetup:
    """All that one rank needs; with `sft` it is a trainer for SFT, with that section's optimizer.

    Rank 0 listens on `master_addr:master_port`; `device` is `cpu` or `cuda`. A process stays the
    same rank of the same group for life.
    """

    rank: int
    world_size: int
    master_addr: str
    master_port: int
    model_path: str
    model: ModelConfig
    learner: LearnerConfig
    sft: SftConfig | None = None
    device: str = "cpu"
    signing: Signing = UNSIGNED
    """How checkpoints are signed, and which ones are loaded."""
    deterministic: bool = False
    """Let torch refuse operations whose result may differ from one run to the next."""
