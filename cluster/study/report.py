"""The results of a study as JSON, as Markdown and on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

from rich.console import Group
from rich.table import Table

from cluster.evaluation.text_table import cell, markdown_text, with_interval
from cluster.study.recipe import Study
from cluster.study.results import CeilingResult, ModelResult
from cluster.study.statistics import Cell, Difference, Row, differences_of, rows_of
from envs.tools import JsonObject


@dataclass(frozen=True, slots=True)
class StageTime:
    """Wall seconds of one stage, of the attempt that finished it."""

    seed: int
    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A trained model of one seed, with the stored result of its stage."""

    seed: int
    model: str
    stored: JsonObject

    @property
    def result(self) -> ModelResult:
        """The stored result, checked."""
        return ModelResult.model_validate(self.stored)

    def to_json(self) -> JsonObject:
        """Return everything that is stored of it."""
        return {"seed": self.seed, "model": self.model, **self.stored}


@dataclass(frozen=True, slots=True)
class StudyReport:
    """Everything that a study found so far."""

    study: Study
    cells: Sequence[Cell]
    ceilings: Mapping[str, CeilingResult]
    """Highest accuracy that a policy can reach without trials, by setting."""
    times: Sequence[StageTime]
    models: Sequence[ModelRow]
    evaluations: Sequence[JsonObject]
    """Every number of every evaluation, with its seed."""
    versions: Mapping[str, str]

    @property
    def seeds(self) -> list[int]:
        """Seeds that are complete."""
        return list(dict.fromkeys(cell.seed for cell in self.cells))

    @property
    def rows(self) -> list[Row]:
        return rows_of(self.cells)

    @property
    def differences(self) -> list[Difference]:
        arms = self.study.section.arms
        return differences_of(self.cells, {name: arm.against for name, arm in arms.items()})

    def to_json(self) -> JsonObject:
        """Return everything, including the descriptions of the arms."""
        content = {
            "recipe_digest": self.study.digest,
            "seeds": self.seeds,
            "versions": dict(self.versions),
            "tasks_per_evaluation": self.study.config.eval.tasks,
            "samples_per_task": self.study.config.eval.samples,
            "ceilings": {key: found.success for key, found in self.ceilings.items()},
            "ceiling_estimates": {key: _ceiling_json(c) for key, c in self.ceilings.items()},
            "rows": [asdict(row) for row in self.rows],
            "differences": [
                {**asdict(found), "in_stderrs": found.accuracy.in_stderrs}
                for found in self.differences
            ],
            "models": [row.to_json() for row in self.models],
            "evaluations": list(self.evaluations),
            "stages": [asdict(time) for time in self.times],
            "wall_s": self.wall_s,
            "study": self.study.section.model_dump(mode="json"),
        }
        return cast(JsonObject, content)

    @property
    def wall_s(self) -> float:
        """Sum of the seconds of all stages, concurrent ones included."""
        return sum(time.seconds for time in self.times)


def to_markdown(report: StudyReport) -> str:
    """Return the report as a Markdown page."""
    study = report.study
    seeds = ", ".join(map(str, report.seeds)) or "none yet"
    tasks = study.config.eval.tasks * study.config.eval.samples
    lines = [
        "# Results of the study",
        "",
        f"Accuracy on held-out tools, {tasks} episodes per seed and cell. {_error_words(report)}",
    ]
    for temperature in study.section.temperatures:
        lines += ["", f"## {temperature}", "", *_markdown(_accuracy_grid(report, temperature))]
        lines += ["", "Trial calls per episode:", "", *_markdown(_trials_grid(report, temperature))]
        differences = _difference_grid(report, temperature)
        if len(differences) > 1:
            lines += ["", "Difference to the best of the arms that each is compared with:", ""]
            lines += _markdown(differences)
    lines += ["", "## Models", "", *_markdown(_model_grid(report)), ""]
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    lines += [
        f"- seeds: {seeds}",
        f"- recipe: `{study.digest}` (complete in `study.json`)",
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
            (f"Accuracy, {temperature}, {seeds}", _accuracy_grid(report, temperature)),
            ("Difference to the best rival", _difference_grid(report, temperature)),
        )
        tables += [_table(title, grid) for title, grid in grids if len(grid) > 1]
    return Group(*tables)


_CEILING_TITLE = "best possible without trials, texts from tools"
Grid = list[list[str]]
"""Rows of cells; the first row is the header."""


def _accuracy_grid(report: StudyReport, temperature: str) -> Grid:
    settings = list(report.study.section.settings)
    rows = {(row.arm, row.setting): row for row in report.rows if row.temperature == temperature}
    grid = [["", *settings]]
    if report.ceilings:
        ceilings = [_ceiling(report.ceilings.get(setting)) for setting in settings]
        grid.append([_CEILING_TITLE, *ceilings])
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
            grid.append(
                [
                    arms[found.arm].title,
                    found.setting,
                    arms[found.best].title,
                    with_interval(size.mean, size.interval, size.seeds, "+.3f"),
                    "-" if ratio is None else f"{ratio:+.1f}",
                ]
            )
    return grid


def _model_grid(report: StudyReport) -> Grid:
    grid = [["model", "seed", "episodes", "tokens trained on", "optimizer steps", "minutes"]]
    for row in report.models:
        found = row.result
        numbers = (row.seed, found.played_episodes, found.trained_tokens, found.optimizer_steps)
        grid.append([row.model, *map(str, numbers), f"{found.seconds / 60:.1f}"])
    return grid


def _score(row: Row | None) -> str:
    if row is None:
        return "-"
    return with_interval(row.accuracy.mean, row.accuracy.interval, row.accuracy.seeds)


def _ceiling(found: CeilingResult | None) -> str:
    return "-" if found is None else with_interval(found.success, found.interval, found.tasks)


def _ceiling_json(found: CeilingResult) -> JsonObject:
    return {**found.to_json(), **asdict(found.interval)}


def _error_words(report: StudyReport) -> str:
    if len(report.seeds) > 1:
        return (
            f"Mean and [95 % interval] over {len(report.seeds)} seeds; each seed has its own "
            "model, SFT data and tasks. Differences are taken seed by seed."
        )
    return "One seed: [95 % interval] over tasks; it does not cover variation over seeds."


def _markdown(grid: Grid) -> list[str]:
    head, *rows = [f"| {' | '.join(map(markdown_text, row))} |" for row in grid]
    ruler = "|---" + "|---:" * (len(grid[0]) - 1) + "|"
    return [head, ruler, *rows]


def _table(title: str, grid: Grid) -> Table:
    table = Table(title=cell(title))
    for index, name in enumerate(grid[0]):
        table.add_column(cell(name), justify="left" if index == 0 else "right")
    for row in grid[1:]:
        table.add_row(*map(cell, row))
    return table
