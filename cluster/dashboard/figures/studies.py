"""Studies: the table of arms and settings, each cell with the runs whose episodes it is made of."""

import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.dashboard.index.library import INSIDE_RUNS, Library, run_id
from cluster.dashboard.models.runs import Study, StudyCell
from cluster.dashboard.problems import not_found
from rollout.evaluation.statistics import mean_estimate
from rollout.store.shared_files import read_bytes

_DEPTH = 4
_MARK = "study.json"
_CELLS = "seed-*/evals/*/*/*"


@dataclass(frozen=True, slots=True)
class KnownStudy:
    """A study below one of the roots."""

    id: str
    path: Path


@dataclass(frozen=True, slots=True)
class _Measured:
    """One evaluation of a study."""

    seed: str
    run: str | None
    result: dict[str, Any]


def find_studies(library: Library) -> list[KnownStudy]:
    """Return the studies below the dashboard's directories."""
    paths = {path for root in library.settings.roots for path in _walk(root, _DEPTH)}
    return [KnownStudy(run_id(path), path) for path in sorted(paths)]


def one_study(library: Library, id: str) -> Study:
    """Return the table of a study, as far as its stages have results. Raises ApiError."""
    known = next((study for study in find_studies(library) if study.id == id), None)
    if known is None:
        raise not_found(f"there is no study {id[:80]!r}", "list them: GET /api/v1/runs")
    runs = {str(run.layout.root): run.id for run in library.runs()}
    cells: dict[tuple[str, str], list[_Measured]] = defaultdict(list)
    unfinished = []
    for folder in sorted(known.path.glob(_CELLS)):
        seed, _, arm, setting, temperature = folder.relative_to(known.path).parts
        result = _result(folder / "result.json")
        if result is None:
            unfinished.append(folder.relative_to(known.path).as_posix())
            continue
        name = f"{setting}, {temperature}"
        cells[arm, name].append(_Measured(seed, runs.get(str(folder / "run")), result))
    arms = list(dict.fromkeys(arm for arm, _ in cells))
    settings = list(dict.fromkeys(setting for _, setting in cells))
    return Study(
        id=id,
        path=str(known.path),
        arms=arms,
        settings=settings,
        cells=[_cell(arm, setting, found) for (arm, setting), found in cells.items()],
        unfinished=unfinished,
        notes=_notes(cells),
    )


def _cell(arm: str, setting: str, found: list[_Measured]) -> StudyCell:
    accuracies = [_number(one.result.get("accuracy")) for one in found]
    values = [value for value in accuracies if value is not None]
    low, high = _interval(found, values)
    trials = [_number(one.result.get("trial_calls_per_episode")) for one in found]
    runs = [one.run for one in found if one.run is not None]
    known = [value for value in trials if value is not None]
    return StudyCell(
        arm=arm,
        setting=setting,
        run=runs[0] if runs else None,
        runs=runs,
        accuracy=statistics.fmean(values) if values else None,
        low=low,
        high=high,
        seeds=len(found),
        tasks=max((int(one.result.get("tasks") or 0) for one in found), default=0),
        trial_calls=statistics.fmean(known) if known else None,
    )


def _interval(found: list[_Measured], values: list[float]) -> tuple[float | None, float | None]:
    """Return the 95 % interval: over tasks for one seed, as stored, and over seeds for several."""
    if len(found) == 1:
        result = found[0].result
        return _number(result.get("accuracy_low")), _number(result.get("accuracy_high"))
    estimate = mean_estimate(values, min(int(one.result.get("tasks") or 1) for one in found) or 1)
    return estimate.low, estimate.high


def _notes(cells: dict[tuple[str, str], list[_Measured]]) -> list[str]:
    seeds = {len(found) for found in cells.values()}
    if len(seeds) > 1:
        return ["Some cells have fewer seeds than others: the study is not complete."]
    if seeds == {1}:
        return ["One seed: intervals are over tasks, and say nothing about other seeds."]
    return ["Intervals are over seeds."] if seeds else []


def _result(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return None
    inner = found.get("result", found) if isinstance(found, dict) else None
    return inner if isinstance(inner, dict) else None


def _number(value: Any) -> float | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if whole and math.isfinite(value) else None


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / _MARK).is_file():
        yield folder
        return
    if depth == 0:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        hidden = entry.name.startswith(".") or entry.name in INSIDE_RUNS
        if not hidden and entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), depth - 1)
