"""Stages that build on each other, with results on disk: a finished stage is never repeated."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import JsonValue

from envs.errors import ConfigError, first_cause
from envs.tools import JsonObject
from rollout.store.journal import replace_file

RESULT = "result.json"
Results = Mapping[str, JsonObject]
"""Results of finished stages, by key."""
Work = Callable[[Path, Results], Awaitable[JsonObject]]
"""Fills the stage's folder, given the results of the stages it needs; the folder may hold what a
killed attempt left.
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of work; its result depends on `inputs` and on the stages in `needs` alone."""

    key: str
    """Its folder below the graph's root, such as `models/trial-sft`."""
    needs: tuple[str, ...]
    inputs: JsonValue
    work: Work
    slots: int = 1
    """Slots of the graph that it takes while it runs."""
    after: tuple[str, ...] = ()
    """Stages that run earlier to share the machine better; their results are not used."""


class StageGraph:
    """Stages in an order that respects their needs; `root` holds a folder for each."""

    def __init__(self, root: Path, stages: Sequence[Stage], slots: int) -> None:
        self._root = root
        self._slots = slots
        self._stages: dict[str, Stage] = {}
        self._digests: dict[str, str] = {}
        for stage in stages:
            self._add(stage)

    @property
    def digests(self) -> Mapping[str, str]:
        """Hash, by key, of everything that a stage's result depends on."""
        return self._digests

    @property
    def unfinished(self) -> list[str]:
        """Keys of the stages without a result, in order. Raises ConfigError as `run` does."""
        return [key for key in self._stages if self._stored(key) is None]

    @property
    def finished(self) -> Results | None:
        """Every stage's result; None while one is missing. Raises ConfigError as `run` does."""
        results = {key: stored for key in self._stages if (stored := self._stored(key)) is not None}
        return results if len(results) == len(self._stages) else None

    async def run(self, finished: Callable[[str, JsonObject], None]) -> Results:
        """Run unfinished stages, at most `slots` at once; returns every stage's result.

        `finished` is called with each stage when it ends. The first failure cancels the others and
        is raised. Raises ConfigError where a stored result was made from other inputs.
        """
        results = {key: stored for key in self._stages if (stored := self._stored(key)) is not None}
        done = {key: asyncio.Event() for key in self._stages}
        for key in results:
            done[key].set()
        room = _Room(self._slots)

        async def finish(stage: Stage) -> None:
            for need in (*stage.needs, *stage.after):
                await done[need].wait()
            async with room.taken(min(stage.slots, self._slots)):
                results[stage.key] = await self._work(stage, results)
            done[stage.key].set()
            finished(stage.key, results[stage.key])

        try:
            async with asyncio.TaskGroup() as group:
                for key in [key for key in self._stages if key not in results]:
                    group.create_task(finish(self._stages[key]))
        except BaseExceptionGroup as errors:
            raise first_cause(errors) from None
        return {key: results[key] for key in self._stages}

    def _add(self, stage: Stage) -> None:
        if stage.key in self._stages:
            raise ConfigError(f"expected one stage {stage.key}, found two: rename one")
        missing = [key for key in (*stage.needs, *stage.after) if key not in self._stages]
        if missing:
            raise ConfigError(
                f"stage {stage.key} needs {missing[0]}, which no earlier stage makes: "
                "name an existing one, without circles"
            )
        needed = [self._digests[need] for need in stage.needs]
        self._stages[stage.key] = stage
        self._digests[stage.key] = digest_of([stage.inputs, *needed])

    async def _work(self, stage: Stage, results: Results) -> JsonObject:
        folder = self._root / stage.key
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        result = await stage.work(folder, {need: results[need] for need in stage.needs})
        seconds = round(time.monotonic() - began, 1)
        record: JsonObject = {"digest": self._digests[stage.key], "seconds": seconds, **result}
        replace_file(folder / RESULT, f"{json.dumps(record, indent=1)}\n".encode())
        return record

    def _stored(self, key: str) -> JsonObject | None:
        path = self._root / key / RESULT
        if not path.is_file():
            return None
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("digest") != self._digests[key]:
            raise ConfigError(
                f"{path.parent} was made from another recipe than this one: name another --dir, "
                "or remove that folder to make it again"
            )
        return result


class _Room:
    """A number of slots, granted in the order of requests."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._turn = asyncio.Lock()
        self._freed = asyncio.Condition()

    def taken(self, slots: int) -> "_Taken":
        return _Taken(self, slots)

    async def take(self, slots: int) -> None:
        async with self._turn, self._freed:
            await self._freed.wait_for(lambda: self._free >= slots)
            self._free -= slots

    async def give_back(self, slots: int) -> None:
        async with self._freed:
            self._free += slots
            self._freed.notify_all()


@dataclass(frozen=True, slots=True)
class _Taken:
    room: _Room
    slots: int

    async def __aenter__(self) -> None:
        await self.room.take(self.slots)

    async def __aexit__(self, *failure: object) -> None:
        await self.room.give_back(self.slots)


def digest_of(value: JsonValue) -> str:
    """Return a short hash of `value`, the same whatever the order of keys."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
