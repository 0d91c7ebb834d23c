"""Why a rollout worker ends: a word for programs, beside the sentence for people."""

from enum import StrEnum

from envs.errors import DeadlineError, EngineError, InfraError, WeightSyncError
from rollout.kept_turns import KeptTurns


class LossKind(StrEnum):
    """Why a worker no longer serves."""

    DIED = "died"
    """Its process ended."""
    FROZEN = "frozen"
    """Its process is stopped, or neither answers nor computes."""
    UNREACHABLE = "unreachable"
    """Neither it nor anything else on its node answers."""
    UNRESPONSIVE = "unresponsive"
    """Its process computes, but did not answer for `rollouts.ping_timeout_s`."""
    ENGINE = "engine"
    """Its inference engine failed, died or is frozen."""
    OVERRAN = "overran"
    """An episode did not end within `rollouts.episode_timeout_s`."""
    WEIGHTS = "weights"
    """It could not load pushed weights."""
    NO_START = "no_start"
    """It did not start."""
    DRAINED = "drained"
    """The pool shrank, and the worker's episodes were not finished in time."""

    @property
    def blames_node(self) -> bool:
        """Whether a loss of this kind counts against the node: an episode that is too slow, and a
        worker that was not wanted any more, say nothing about it.
        """
        return self not in (LossKind.OVERRAN, LossKind.DRAINED)


class WorkerLost(InfraError):
    """The worker that ran an episode is gone; the episode is to be run by another one."""

    def __init__(
        self, message: str, kind: LossKind = LossKind.DIED, kept: KeptTurns | None = None
    ) -> None:
        super().__init__(message, kind, kept)
        self.message = message
        self.kind = kind
        self.kept = kept
        """The finished turns of the episode that reached the driver."""

    def __str__(self) -> str:
        return self.message


def kind_of(error: Exception, *, was_healthy: bool) -> LossKind:
    """Return why the worker that raised `error` is lost."""
    match error:
        case WorkerLost():
            return error.kind if was_healthy or error.kind is not LossKind.DIED else _START
        case WeightSyncError():
            return LossKind.WEIGHTS
        case EngineError():
            return LossKind.ENGINE if was_healthy else _START
        case TimeoutError() | DeadlineError():
            return LossKind.UNRESPONSIVE if was_healthy else _START
        case _:
            return LossKind.DIED if was_healthy else _START


_START = LossKind.NO_START
