"""Run directories: found by name, and what each says about its run. Needs no cluster."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.jobs.health import Health, read_health
from cluster.lifecycle.mirror_process import read_state
from cluster.lifecycle.retention import newest_checkpoint
from cluster.lifecycle.writer import Writer, read_writer
from cluster.metrics import dropped_reasons
from envs.errors import ConfigError
from rollout.mirror.copies import read_copy_record
from rollout.store.run_kind import is_blank
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_lock import is_written
from rollout.store.run_reader import MetricsRow, RunReader

RUN_DIRECTORY_IS = "the run directory is "
"""What a command prints before the path of its run; jobs are recognised by it in their logs."""
_DEPTH = 3
"""Levels of folders below a folder of runs in which runs are looked for."""
_SHOWN = ("success", "reward", "loss", "workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """What a run directory says about its run."""

    name: str
    kind: RunKind
    state: str
    """`running`, `finished`, `stopped`, or `failed start`: nothing was recorded."""
    step: int
    """Last step that was recorded."""
    steps: int | None
    """Steps that the run is to make; None where its kind has none, or plans none ahead."""
    newest: dict[str, float]
    """Some metrics of the last step."""
    path: Path
    checkpoint: Path | None
    model: Path | None
    """The exported model; None where there is none yet."""
    writer: Writer | None
    mirror: str = ""
    """Address of its mirror, or of the mirror that this directory is a copy of."""
    mirror_state: str = ""
    """How the mirror is, in words."""
    health: Health | None = None
    """What the running job said last of its workers; None where nothing runs, or it says nothing.
    """
    trained_nothing: str = ""
    """Which steps made no update, and why; empty if every step made one."""


def status_of(path: Path) -> RunStatus:
    """Return the state of the run in `path`. Raises MissingError, StoreError."""
    reader = RunReader(path)
    layout, kind = reader.layout, reader.kind
    rows = reader.metrics()
    last = rows[-1] if rows else None
    steps = reader.recipe.get("run", {}).get("steps") if kind is RunKind.TRAIN else None
    if not isinstance(steps, int):
        steps = None
    checkpoint = newest_checkpoint(layout.checkpoints) if layout.checkpoints.is_dir() else None
    mirror, mirror_state = _mirror_of(layout)
    return RunStatus(
        name=reader.info.run,
        kind=kind,
        state=_state(layout, kind, checkpoint, steps),
        step=last.step if last else 0,
        steps=steps,
        newest={k: v for k, v in last.values.items() if k in _SHOWN} if last else {},
        path=layout.root.absolute(),
        checkpoint=checkpoint,
        model=layout.model if layout.model.exists() else None,
        writer=read_writer(layout),
        mirror=mirror,
        mirror_state=mirror_state,
        health=read_health(layout) if is_written(layout) else None,
        trained_nothing=_trained_nothing(rows) if kind is RunKind.TRAIN else "",
    )


def runs_below(folder: Path) -> list[Path]:
    """Return the runs in `folder` and in the folders below it, by path."""
    return sorted(_walk(folder, _DEPTH))


def find_run(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the run that `name` names: a path, or the name of a run below one of `folders`.

    Raises ConfigError where several runs have the name.
    """
    if RunLayout(Path(name)).run_json.exists():
        return Path(name).absolute()
    found = {
        run.resolve()
        for folder in folders
        for run in runs_below(folder)
        if name in (run.name, run.relative_to(folder).as_posix())
    }
    if len(found) > 1:
        listed = ", ".join(map(str, sorted(found)))
        raise ConfigError(f"several runs are called {name!r}: name the path of one of {listed}")
    return next(iter(found), None)


def _trained_nothing(rows: Sequence[MetricsRow]) -> str:
    without = [row for row in rows if row.values.get("optimizer_steps") == 0]
    if not without:
        return ""
    reasons = dropped_reasons(without[-1].values)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "no episode"
    share = f"{len(without)} of {len(rows)} steps made no update"
    return f"{share}, the last of them step {without[-1].step} (dropped: {why})"


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for inner in folder.iterdir():
        if inner.name.startswith(".") or not inner.is_dir():
            continue
        if RunLayout(inner).run_json.exists():
            yield inner
        elif depth > 1:
            yield from _walk(inner, depth - 1)


def _mirror_of(layout: RunLayout) -> tuple[str, str]:
    """Return the address of a run's mirror, and how that is, in words; empty for none."""
    copy = read_copy_record(layout)
    if copy is not None:
        return copy.address, f"state of {_when(copy.at)}"
    found = read_state(layout)
    if found is None:
        return "", ""
    as_of = f"state of {_when(found.mirrored_at)}" if found.mirrored_at else "nothing there yet"
    lacks = f"lacks {found.behind}" if found.behind else ""
    return found.address, "; ".join(filter(None, (found.state, as_of, lacks, found.problem)))


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _state(layout: RunLayout, kind: RunKind, checkpoint: Path | None, steps: Any) -> str:
    copy = read_copy_record(layout)
    if copy.live if copy else is_written(layout):
        return "running"
    done = {
        RunKind.TRAIN: layout.model.exists() and int(checkpoint.name if checkpoint else 0) == steps,
        RunKind.SFT: layout.model.exists(),
        RunKind.EVAL: layout.eval_json.exists(),
        RunKind.COLLECT: layout.selection.exists(),
    }
    if done.get(kind, False):
        return "finished"
    blank = not copy.has_work if copy else is_blank(layout)
    return "failed start" if blank else "stopped"
