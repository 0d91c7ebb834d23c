"""The results of a study as JSON, as Markdown and on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

from rich.console import Group
from rich.table import Table

from cluster.study.recipe import Study
from cluster.study.statistics import Cell, Difference, Row, differences_of, rows_of
from envs.tools import JsonObject


@dataclass(frozen=True, slots=True)
class StageTime:
    """Wall seconds of one stage: of the attempt that finished it."""

    seed: int
    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StudyReport:
    """All that a study found so far."""

    study: Study
    cells: Sequence[Cell]
    ceilings: Mapping[str, float]
    """Share of right answers that no policy can exceed without trying, by setting."""
    times: Sequence[StageTime]
    models: Sequence[JsonObject]
    """What each model took and reached, with its seed and name."""
    evaluations: Sequence[JsonObject]
    """Every number of every evaluation, with its seed."""
    versions: Mapping[str, str]

    @property
    def seeds(self) -> list[int]:
        """Seeds that are whole."""
        return list(dict.fromkeys(cell.seed for cell in self.cells))

    @property
    def rows(self) -> list[Row]:
        return rows_of(self.cells)

    @property
    def differences(self) -> list[Difference]:
        arms = self.study.section.arms
        return differences_of(self.cells, {name: arm.against for name, arm in arms.items()})

    def to_json(self) -> JsonObject:
        """Return everything, with the arms' own descriptions beside the numbers."""
        content = {
            "recipe_digest": self.study.digest,
            "seeds": self.seeds,
            "versions": dict(self.versions),
            "tasks_per_evaluation": self.study.config.eval.tasks,
            "samples_per_task": self.study.config.eval.samples,
            "ceilings": dict(self.ceilings),
            "rows": [asdict(row) for row in self.rows],
            "differences": [
                {**asdict(found), "in_stderrs": found.accuracy.in_stderrs}
                for found in self.differences
            ],
            "models": list(self.models),
            "evaluations": list(self.evaluations),
            "stages": [asdict(time) for time in self.times],
            "wall_s": self.wall_s,
            "study": self.study.section.model_dump(mode="json"),
        }
        return cast(JsonObject, content)

    @property
    def wall_s(self) -> float:
        """Seconds of all stages added up; stages that ran at once count each."""
        return sum(time.seconds for time in self.times)


def to_markdown(report: StudyReport) -> str:
    """Return the report as a Markdown page."""
    study = report.study
    seeds = ", ".join(map(str, report.seeds)) or "none yet"
    tasks = study.config.eval.tasks * study.config.eval.samples
    lines = [
        "# Results of the study",
        "",
        f"Share of right answers on held-out tools, {tasks} episodes per seed and cell. "
        f"{_error_words(report)}",
    ]
    for temperature in study.section.temperatures:
        lines += ["", f"## {temperature}", "", *_markdown(_accuracy_grid(report, temperature))]
        lines += ["", "Trial calls per episode:", "", *_markdown(_trials_grid(report, temperature))]
        differences = _difference_grid(report, temperature)
        if len(differences) > 1:
            lines += ["", "Against the best of the arms that each is compared with:", ""]
            lines += _markdown(differences)
    lines += ["", "## What made it", "", *_markdown(_model_grid(report)), ""]
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    lines += [
        f"- seeds: {seeds}",
        f"- recipe: `{study.digest}` (its whole text is in `study.json`)",
        f"- wall time of all stages added up: {report.wall_s / 60:.0f} minutes",
        f"- versions: {versions}",
    ]
    return "\n".join(lines) + "\n"


def to_terminal(report: StudyReport) -> Group:
    """Return the tables of the report for a terminal."""
    tables: list[Table] = []
    for temperature in report.study.section.temperatures:
        seeds = f"{len(report.seeds)} seeds"
        grids = (
            (f"Right answers, {temperature}, {seeds}", _accuracy_grid(report, temperature)),
            ("Against the best of its rivals", _difference_grid(report, temperature)),
        )
        tables += [_table(title, grid) for title, grid in grids if len(grid) > 1]
    return Group(*tables)


Grid = list[list[str]]
"""Rows of cells; the first row is the head."""


def _accuracy_grid(report: StudyReport, temperature: str) -> Grid:
    settings = list(report.study.section.settings)
    rows = {(row.arm, row.setting): row for row in report.rows if row.temperature == temperature}
    grid = [["", *settings]]
    if report.ceilings:
        ceilings = [f"{report.ceilings[s]:.2f}" if s in report.ceilings else "-" for s in settings]
        grid.append(["best possible without trying", *ceilings])
    for name, arm in report.study.section.arms.items():
        found = [rows.get((name, setting)) for setting in settings]
        grid.append([arm.title, *(_score(row) for row in found)])
    return grid


def _trials_grid(report: StudyReport, temperature: str) -> Grid:
    settings = list(report.study.section.settings)
    rows = {(row.arm, row.setting): row for row in report.rows if row.temperature == temperature}
    grid = [["", *settings]]
    for name, arm in report.study.section.arms.items():
        found = [rows.get((name, setting)) for setting in settings]
        grid.append([arm.title, *(f"{row.trial_calls:.1f}" if row else "-" for row in found)])
    return grid


def _difference_grid(report: StudyReport, temperature: str) -> Grid:
    arms = report.study.section.arms
    grid = [["", "setting", "best rival", "difference", "in standard errors"]]
    for found in report.differences:
        if found.temperature == temperature:
            size, ratio = found.accuracy, found.accuracy.in_stderrs
            error = "" if size.stderr is None else f" ± {size.stderr:.3f}"
            grid.append(
                [
                    arms[found.arm].title,
                    found.setting,
                    arms[found.best].title,
                    f"{size.mean:+.3f}{error}",
                    "-" if ratio is None else f"{ratio:+.1f}",
                ]
            )
    return grid


def _model_grid(report: StudyReport) -> Grid:
    grid = [["model", "seed", "episodes played", "tokens trained on", "optimizer steps", "minutes"]]
    for model in report.models:
        minutes = float(str(model["seconds"])) / 60
        counts = [str(model[key]) for key in ("played_episodes", "trained_tokens")]
        steps = str(model["optimizer_steps"])
        grid.append([str(model["model"]), str(model["seed"]), *counts, steps, f"{minutes:.1f}"])
    return grid


def _score(row: Row | None) -> str:
    if row is None:
        return "-"
    error = "" if row.accuracy.stderr is None else f" ± {row.accuracy.stderr:.3f}"
    return f"{row.accuracy.mean:.3f}{error}"


def _error_words(report: StudyReport) -> str:
    if len(report.seeds) > 1:
        return (
            f"Mean ± standard error over {len(report.seeds)} seeds; a seed draws the model, the "
            "lessons and the tasks anew. Differences are taken seed by seed."
        )
    return "One seed: ± is the standard error over tasks, which says nothing about other seeds."


def _markdown(grid: Grid) -> list[str]:
    head, *rows = [f"| {' | '.join(row)} |" for row in grid]
    ruler = "|---" + "|---:" * (len(grid[0]) - 1) + "|"
    return [head, ruler, *rows]


def _table(title: str, grid: Grid) -> Table:
    table = Table(title=title)
    for index, name in enumerate(grid[0]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in grid[1:]:
        table.add_row(*row)
    return table
