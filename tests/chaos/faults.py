"""The faults of the chaos tests: what is hit, in which state, how, and what must follow.

Data alone: `injector.py` waits for the state, injects the fault and keeps its witness.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from random import Random

from cluster.config.run_config import ClusterSection


class Target(StrEnum):
    """What a fault hits."""

    WORKER = "rollout worker"
    ENGINE = "engine process"
    TOOL_SERVER = "tool server"
    FORK_SERVER = "fork server"
    LEARNER = "learner rank"
    RAYLET = "raylet"
    DRIVER = "driver"
    DISK = "disk"


class Blow(StrEnum):
    """How a fault hits it."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    TERM = "SIGTERM"
    FULL = "full"
    SLOW = "slow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a schedule."""

    target: Target
    state: str
    """State in which it must be when it is hit, as observed; see `injector.STATES`."""
    blow: Blow
    within_s: float
    """Seconds until the run works on as before: the deadlines of the product for this fault, the
    restart of what was lost, and as much again for a busy machine.
    """
    alone: bool = True
    """Whether it waits until the faults before it are over, and the next one until it is."""
    leads: bool = False
    """Whether the next fault hits what this one makes start."""

    @property
    def name(self) -> str:
        return f"{self.target}, {self.state}: {self.blow}"


def hit(
    target: Target, state: str, blow: Blow, within_s: float, *, alone: bool = True
) -> tuple[Fault, ...]:
    """Return a sequence of one fault."""
    return (Fault(target=target, state=state, blow=blow, within_s=within_s, alone=alone),)


def during_recovery(target: Target, blow: Blow, within_s: float) -> tuple[Fault, ...]:
    """Return two faults: a worker is killed, and its replacement is hit while it starts."""
    first = Fault(
        target=Target.WORKER,
        state="generating",
        blow=Blow.KILL,
        within_s=within_s + 180,
        alone=False,
        leads=True,
    )
    return first, *hit(target, "starting", blow, within_s)


RECIPE = (
    "rollouts.ping_timeout_s=10",
    "rollouts.episode_timeout_s=40",
    "rollouts.pool_timeout_s=300",
    "engine.load_timeout_s=20",
    "engine.start_timeout_s=150",
    "cluster.learner_timeout_s=180",
    "tools.request_timeout_s=20",
    # Here it is never the node's fault.
    *(
        ["cluster.quarantine_losses=0"]
        if "quarantine_losses" in ClusterSection.model_fields
        else []
    ),
)
"""Deadlines of the chaos runs. They are short, so that a stopped process does not cost minutes."""

_W, _E, _T, _F, _L = (
    Target.WORKER,
    Target.ENGINE,
    Target.TOOL_SERVER,
    Target.FORK_SERVER,
    Target.LEARNER,
)
_KILL, _STOP = Blow.KILL, Blow.STOP

LONG: tuple[tuple[Fault, ...], ...] = (
    *2 * (hit(_W, "idle", _KILL, 120),),
    *4 * (hit(_W, "generating", _KILL, 200, alone=False),),
    *3 * (hit(_W, "loading weights", _KILL, 120),),
    *2 * (during_recovery(_W, _KILL, 180),),
    hit(_W, "idle", _STOP, 150),
    *2 * (hit(_W, "generating", _STOP, 150),),
    hit(_W, "loading weights", _STOP, 150),
    during_recovery(_W, _STOP, 300),
    hit(_E, "idle", _KILL, 120),
    *4 * (hit(_E, "generating", _KILL, 200, alone=False),),
    *2 * (hit(_E, "loading weights", _KILL, 120),),
    *2 * (during_recovery(_E, _KILL, 180),),
    *2 * (hit(_E, "generating", _STOP, 200),),
    hit(_E, "loading weights", _STOP, 200),
    *4 * (hit(_T, "serving", _KILL, 100, alone=False),),
    hit(_T, "idle", _KILL, 100, alone=False),
    *2 * (hit(_T, "serving", _STOP, 150, alone=False),),
    *4 * (hit(_F, "serving", _KILL, 100, alone=False),),
    *2 * (hit(_F, "serving", _STOP, 150, alone=False),),
    *2 * (hit(_L, "learning", _KILL, 240),),
    hit(_L, "idle", _KILL, 240),
    hit(_L, "saving a checkpoint", _KILL, 240),
    hit(_L, "publishing weights", _KILL, 240),
    hit(_L, "learning", _STOP, 500),
    *2 * (hit(Target.RAYLET, "with workers", _KILL, 300),),
    hit(Target.RAYLET, "with workers", _STOP, 300),
    hit(Target.DRIVER, "collecting", _KILL, 300),
    hit(Target.DRIVER, "learning", _KILL, 300),
    hit(Target.DRIVER, "saving a checkpoint", _KILL, 300),
    hit(Target.DRIVER, "loading weights", _KILL, 300),
    hit(Target.DRIVER, "collecting", Blow.TERM, 300),
    hit(Target.DRIVER, "collecting", _STOP, 120),
    *2 * (hit(Target.DISK, "writing", Blow.FULL, 300),),
    hit(Target.DISK, "writing", Blow.SLOW, 300),
)
"""The faults of the long run, in groups that stay together."""

SHORT: tuple[tuple[Fault, ...], ...] = (
    hit(_F, "any", _KILL, 120, alone=False),
    hit(_W, "generating", _KILL, 180, alone=False),
    hit(_T, "any", _KILL, 120, alone=False),
    hit(_E, "generating", _KILL, 180, alone=False),
)
"""The faults of the short run, in this order: most of them while the one before is felt. A lost
learner has a test of its own beside it.
"""

SOAK: tuple[tuple[Fault, ...], ...] = (
    *3 * (hit(_W, "generating", _KILL, 120),),
    hit(_W, "loading weights", _KILL, 120),
    *2 * (hit(_E, "generating", _KILL, 120),),
    hit(_W, "generating", _STOP, 150),
    *2 * (hit(_T, "serving", _KILL, 100, alone=False),),
    *2 * (hit(_F, "serving", _KILL, 100, alone=False),),
    hit(_L, "learning", _KILL, 240),
)
"""The faults of the soak, whose runs are compared by what they learn."""


def shuffled(groups: Iterable[Sequence[Fault]], seed: int) -> list[Fault]:
    """Return all faults, their groups in an order that depends on `seed` alone."""
    order = list(groups)
    Random(seed).shuffle(order)
    return list(chain.from_iterable(order))
