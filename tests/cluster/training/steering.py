"""Requests to a running job, and a pool that only notes what it is told."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.fleet.pool_worker import Worker
from cluster.training.control import Controls
from cluster.training.requested_checkpoints import RequestedCheckpoints
from rollout.store.control import (
    ControlEvent,
    ControlRequest,
    ScaleRequest,
)
from rollout.store.journal import read_objects
from rollout.store.run_directory import RunDirectory


class Places:
    paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


@dataclass
class Pool:
    workers: list[Worker] = field(default_factory=list)
    places: Places = field(default_factory=Places)
    sizes: list[int] = field(default_factory=lambda: [2])
    others: dict[str, int] = field(default_factory=dict)
    aborted: list[bool] = field(default_factory=list)

    @property
    def desired(self) -> int:
        return self.sizes[-1]

    @property
    def groups(self) -> dict[str, int]:
        return {"default": self.sizes[-1], **self.others}

    def resize(self, desired: int, group: str, *, abort: bool) -> None:
        self.aborted.append(abort)
        if group == "default":
            self.sizes.append(desired)
        else:
            self.others[group] = desired


def controls_of(
    run: RunDirectory,
    pool: Pool,
    *,
    room: Callable[[str], int] = lambda group: 9,
    checkpoints: RequestedCheckpoints | None = None,
    stop: Callable[[], None] = lambda: signal.raise_signal(signal.SIGTERM),
) -> Controls:
    return Controls(run, pool, room, checkpoints or RequestedCheckpoints(no_save, 0), stop)


async def no_save(step: int) -> None:
    raise AssertionError("nobody asked for a checkpoint")


def put(run: RunDirectory, name: str, workers: int) -> None:
    event = ControlEvent(at=1.0, actor="ada", request=ScaleRequest(workers=workers))
    (run.layout.requests / f"{name}.json").write_text(event.model_dump_json())


def put_text(run: RunDirectory, name: str, request: str) -> None:
    row = f'{{"at": 1.0, "actor": "ada", {request}}}'
    (run.layout.requests / f"{name}.json").write_text(row)


def answers(run: RunDirectory) -> list[dict[str, Any]]:
    """The first answer to every request, not what became of it."""
    rows: list[dict[str, Any]] = [*read_objects(run.layout.control)]
    return [row for row in rows if not row["completed"]]


def ask(run: RunDirectory, name: str, request: ControlRequest) -> None:
    event = ControlEvent(at=1.0, actor="ada", request=request)
    (run.layout.requests / f"{name}.json").write_text(event.model_dump_json())


def told(run: RunDirectory) -> list[tuple[object, object]]:
    return [(row["completed"], row["note"]) for row in read_objects(run.layout.control)]


def no_client() -> Any:
    return None
