"""The report of an evaluation as tables: how often it is right, and how it goes about it."""

from collections.abc import Mapping

from pydantic import JsonValue

from cluster.evaluation.text_table import TextTable, figure
from rollout.evaluation.report import ALL, EvalReport, ReportRow

SCALE = "mean ± standard error over tasks"


def evaluation_tables(report: EvalReport) -> list[TextTable]:
    """Return the tables of a report."""
    return [_right(report), _behaviour(report)]


def evaluation_markdown(report: EvalReport, name: str, setting: Mapping[str, JsonValue]) -> str:
    """Return the whole report as Markdown."""
    told = ", ".join(f"{key} {value}" for key, value in setting.items())
    parts = [f"# Evaluation {name}\n", f"{told}.\n"]
    parts += [f"- {note}.\n" for note in report.notes]
    parts += [sheet.markdown() for sheet in evaluation_tables(report)]
    return "\n".join(parts)


def row_label(row: ReportRow) -> str:
    """Return what a row is about, in words."""
    return ALL if row.by == ALL else f"{row.by} {row.value}"


def _right(report: EvalReport) -> TextTable:
    voted = any(row.majority is not None for row in report.rows)
    columns = [
        "",
        "tasks",
        "samples",
        *(f"pass@{k}" for k in report.ks),
        *["majority"] * voted,
    ]
    rows = [
        (
            row_label(row),
            str(row.tasks),
            str(row.samples),
            *(figure(row.pass_at_k[k]) for k in report.ks),
            *[figure(row.majority)] * voted,
        )
        for row in report.rows
    ]
    return TextTable(f"Right answers ({SCALE})", tuple(columns), rows)


def _behaviour(report: EvalReport) -> TextTable:
    columns = ("", "trial calls", "tool errors", "malformed turns", "sampled tokens")
    rows = [
        (
            row_label(row),
            figure(row.trial_calls, ".2f"),
            figure(row.tool_error_rate),
            figure(row.malformed_rate),
            figure(row.tokens, ".1f"),
        )
        for row in report.rows
    ]
    title = f"How (calls and tokens per episode, errors per call, malformed per turn; {SCALE})"
    return TextTable(title, columns, rows)
