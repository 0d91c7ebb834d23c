"""Mutates files of a run directory and reads them: prints how often what came of it.

`python -m tests.rollout.store.fuzz_child TARGET SEED COUNT FOLDER`. Of every mutation the reader
says a typed error (`error`), or gives what was written (`same`), or less of it from some place on
(`less`): what a killed writer leaves looks like that. Anything else ends the process with a
traceback.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import TrialrunError
from envs.server.traffic import TrafficReader, TrafficRecorder
from envs.server.wire import EncodedCall, OpenItem
from envs.tools import AnswerStatus, ToolAnswer, ToolSet
from rollout.episode_schema import to_batch
from rollout.store.control import ControlEvent, ScaleRequest
from rollout.store.journal import read_objects
from rollout.store.ledger import LedgerReader
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunLayout
from rollout.store.run_reader import RunReader
from rollout.store.segments import ROWS_PER_BATCH
from tests.cluster.conftest import Numbered, canned, leases_of

TARGETS = ("segment", "index", "ledger", "manifest", "metrics", "control", "traffic", "checkpoint")


@dataclass(frozen=True)
class Target:
    """A file, and what its reader returns, as texts in order."""

    path: Path
    read: Callable[[], list[str]]
    after: Callable[[int], list[str]] | None = None
    """What it returns if only so many lines are there; by default the first so many texts."""


def run_at(folder: Path) -> RunLayout:
    task = Numbered().tasks("train", 0, 1)[0]
    with RunDirectory.create(folder, "", RunInfo(run="unit", seed=0, created_at=1.0)) as run:
        for number in range(3):
            leases = leases_of(task, ROWS_PER_BATCH + 1, number)
            run.ledger.lease(leases)
            run.append(to_batch([canned(lease, task, 0, "worker-1") for lease in leases]))
            for lease in leases:
                run.ledger.finish(lease)
            names = [lease.episode for lease in leases]
            run.ledger.train(number + 1, names[1:])
            run.ledger.drop(names[:1], DropReason.ZERO_VARIANCE, number + 1)
            run.record_metrics(number + 1, {"loss": 0.5 + number, "reward": float("nan")})
            request = ScaleRequest(workers=number + 2)
            run.record_control(ControlEvent(at=float(number), actor="me", request=request))
        run.sync()
    return RunLayout(folder)


def record_at(folder: Path) -> Path:
    recorder, tools = TrafficRecorder(folder, now=lambda: 5.0), ToolSet(tools=())
    for number in range(12):
        item = OpenItem(digest=tools.digest, seed=number, purpose="trial", episode=f"e{number}")
        recorder.opened(f"s{number}", item, tools)
        call = EncodedCall(name="add", arguments=json.dumps({"x": number}))
        text = f"answer {number} " * 20
        answer = ToolAnswer(status=AnswerStatus.OK, text=text, seconds=0.25)
        recorder.answered(f"s{number}", call, answer)
        recorder.closed(f"s{number}")
    recorder.close()
    return next(folder.glob("*.traffic"))


def checkpoint_at(folder: Path) -> Target:
    # Torch is imported only for this target.
    from learner.outputs.checkpoint import CheckpointRecord, read_record
    from learner.signing import Signing

    record = CheckpointRecord(4, 4, "mine", 1, 1, "adamw", {"a.pt": "0" * 64})
    signing = Signing((b"key",))
    signed = {**vars_of(record), "signature": signing.sign(record.signed_text)}
    marker = folder / "complete"
    folder.mkdir()
    marker.write_text(json.dumps(signed))
    return Target(marker, lambda: [repr(read_record(folder, signing))])


def vars_of(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def target_of(name: str, folder: Path) -> Target:
    if name == "checkpoint":
        return checkpoint_at(folder / "checkpoint")
    if name == "traffic":
        path = record_at(folder / "traffic")
        return Target(path, lambda: traffic(path.parent))
    layout = run_at(folder / "run")
    paths = {
        "segment": layout.episodes / "000001.arrows",
        "index": layout.index / "000001.jsonl",
        "ledger": layout.ledger,
        "manifest": layout.manifest,
        "metrics": layout.metrics,
        "control": layout.control,
    }
    path = paths[name]
    if name in ("segment", "index"):
        return Target(path, lambda: episodes(layout))
    if name == "ledger":
        lines = path.read_bytes().splitlines(keepends=True)
        return Target(path, lambda: ledger(path), lambda count: states(path, lines)[count])
    if name == "metrics":
        return Target(path, lambda: [repr(row) for row in RunReader(layout.root).metrics()])
    return Target(path, lambda: [repr(_known(row)) for row in read_objects(path)])


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """Return what readers look at: in the first line, what was the key of the checksum may be any
    other key now.
    """
    names = {"event", "pid", "session", "segment", "step", *ControlEvent.model_fields}
    return {name: value for name, value in row.items() if name in names}


def episodes(layout: RunLayout) -> list[str]:
    reader = RunReader(layout.root)
    rows = reader.episodes()
    return [repr(reader.batch([row]).to_pylist()[0]) for row in rows]


def ledger(path: Path) -> list[str]:
    return [repr(sorted(LedgerReader(path).refresh().entries.items()))]


_STATES: list[list[str]] = []


def states(path: Path, lines: Sequence[bytes]) -> list[list[str]]:
    """Return the state after every number of lines."""
    if not _STATES:
        copy = path.with_name("prefix.jsonl")
        for count in range(len(lines) + 1):
            copy.write_bytes(b"".join(lines[:count]))
            _STATES.append(ledger(copy))
        copy.unlink()
    return _STATES


def traffic(folder: Path) -> list[str]:
    reader = TrafficReader(folder)
    try:
        return [
            text
            for session in reader.sessions
            for text in (
                repr((session.id, session.seed, session.episode, session.opened_at)),
                *(repr(reader.answer(session, n)) for n in range(len(session.answers))),
            )
        ]
    finally:
        reader.close()


def mutated(whole: bytes, dice: random.Random) -> bytes:
    content = bytearray(whole)
    start = dice.randrange(len(content))
    length = dice.choice((1, 2, 8, 100, 600))
    match dice.randrange(7):
        case 0 | 1:
            for _ in range(dice.choice((1, 1, 2, 4))):
                content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        case 2:
            content[start] = dice.randrange(256)
        case 3:
            del content[start:]
        case 4:
            content[start : start + length] = bytes(len(content[start : start + length]))
        case 5:
            content[start : start + length] = dice.randbytes(len(content[start : start + length]))
        case _:
            content[start:start] = dice.randbytes(length)
    return bytes(content)


def verdict(target: Target, expected: list[str]) -> str:
    try:
        found = target.read()
    except TrialrunError as error:
        assert str(error)
        return "error"
    if found == expected:
        return "same"
    if target.after is not None:
        assert any(found == target.after(count) for count in range(len(_STATES))), found
    else:
        assert found == expected[: len(found)], found
    return "less"


def main(name: str, seed: int, count: int, folder: Path) -> None:
    target, dice = target_of(name, folder), random.Random(f"{name} {seed}")
    whole, expected = target.path.read_bytes(), target.read()
    if target.after is not None:
        target.after(0)
    found: Counter[str] = Counter()
    for number in range(count):
        content = mutated(whole, dice)
        target.path.write_bytes(content)
        (folder / "last").write_text(f"{name} {seed} {number}")
        found[verdict(target, expected)] += 1
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
