"""What a running job says of its workers and of what it waits for: `health.json` of its directory.

The job writes it every few seconds; `trialrun status` reads it.
"""

from pydantic import BaseModel, ConfigDict, ValidationError

from rollout.store.journal import replace_file
from rollout.store.run_layout import RunLayout
from rollout.store.shared_files import read_bytes


class WorkerHealth(BaseModel):
    """One rollout worker."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    group: str
    state: str
    for_s: float
    """How long it has been in that state."""
    node: str
    version: int
    episodes: int
    """Running on it now."""

    def describe(self) -> str:
        """Return the worker in a few words."""
        return f"{self.name} {self.state} for {self.for_s:.0f} s, {self.episodes} episodes"


class Health(BaseModel):
    """The state of a job's parts."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: float
    """When it was written, Unix seconds."""
    doing: str
    """What the training loop does now."""
    stalled: str = ""
    """What it has been waiting for too long, and since when; empty while it moves."""
    failing: str = ""
    """What ends every episode of late; empty while episodes come back that count."""
    wanted: dict[str, int] = {}
    """Target number of workers of each group."""
    workers: list[WorkerHealth] = []
    quarantined: list[str] = []
    """A line for each node that gets no new workers."""


def write_health(layout: RunLayout, health: Health) -> None:
    """Write the file. Raises StoreError."""
    replace_file(layout.health, health.model_dump_json(indent=1).encode())


def read_health(layout: RunLayout) -> Health | None:
    """Return what the job wrote last; None where there is none, or one of another version."""
    try:
        return Health.model_validate_json(read_bytes(layout.health))
    except (OSError, ValidationError):
        return None
