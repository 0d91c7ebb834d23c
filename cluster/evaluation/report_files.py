"""The report of an evaluation, made from its run directory and written there.

Reads the run alone: drawing a plot of stored episodes needs neither torch nor Ray.
"""

import json
from pathlib import Path

from pydantic import JsonValue

from cluster.evaluation.eval_tables import evaluation_markdown
from envs.tools import JsonObject
from rollout.evaluation.lost_attempts import lost_attempts
from rollout.evaluation.reader import read_rows
from rollout.evaluation.report import EvalReport, evaluation_report
from rollout.store.journal import replace_file
from rollout.store.run_reader import RunReader
from rollout.store.stored_recipe import Recipe, names_in

_SETTING = {
    "model": ("model", "path"),
    "environment": ("env", "name"),
    "perturbation": ("env", "perturbation"),
    "mode": ("episode", "mode"),
    "split": ("eval", "split"),
    "samples": ("eval", "samples"),
    "temperature": ("eval", "temperature"),
    "seed": ("run", "seed"),
}
"""Values of the recipe that a report quotes, by their name in the report."""


def report_on(path: Path) -> EvalReport:
    """Report on the episodes at `path`, and write the report there as JSON and as Markdown.

    The recipe in the run is only quoted, so one that this version would refuse is no obstacle.
    """
    reader = RunReader(path)
    recipe = reader.recipe
    report = evaluation_report(
        read_rows(path),
        names_in(recipe, "eval", "by", str(reader.layout.config_toml)),
        lost_attempts((row.task, row.outcome) for row in reader.episodes()),
    )
    setting = _setting(recipe)
    content: JsonObject = {**report.to_json(), **setting, "run_dir": str(path)}
    layout = reader.layout
    replace_file(layout.eval_json, json.dumps(content, indent=1, allow_nan=False).encode())
    markdown = evaluation_markdown(report, path.resolve().name, setting)
    replace_file(layout.eval_markdown, markdown.encode())
    return report


def _setting(recipe: Recipe) -> dict[str, JsonValue]:
    """Return the main settings of an evaluation; those that the recipe lacks are left out."""
    return {
        name: recipe[section][key]
        for name, (section, key) in _SETTING.items()
        if key in recipe.get(section, {})
    }
