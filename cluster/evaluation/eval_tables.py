"""Tables of an evaluation report: accuracy and behaviour of the policy."""

from collections.abc import Mapping

from pydantic import JsonValue

from cluster.evaluation.text_table import TextTable, figure, markdown_text
from rollout.evaluation.report import ALL, EvalReport, ReportRow

SCALE = "[95 % interval], tasks are the unit"


def evaluation_tables(report: EvalReport) -> list[TextTable]:
    """Return the tables of a report: accuracy first, then behaviour."""
    return [_accuracy(report), _behaviour(report)]


def evaluation_markdown(report: EvalReport, name: str, setting: Mapping[str, JsonValue]) -> str:
    """Return the complete report as Markdown; `setting` is listed under the heading."""
    settings = ", ".join(f"{key} {value}" for key, value in setting.items())
    parts = [f"# Evaluation {markdown_text(name)}\n", f"{markdown_text(settings)}.\n"]
    parts += [f"- {markdown_text(note)}.\n" for note in report.notes]
    parts += [table.markdown() for table in evaluation_tables(report)]
    return "\n".join(parts)


def row_label(row: ReportRow) -> str:
    """Return the label of a row, for example `depth 2`."""
    return ALL if row.by == ALL else f"{row.by} {row.value}"


def _accuracy(report: EvalReport) -> TextTable:
    has_majority = any(row.majority is not None for row in report.rows)
    columns = [
        "",
        "tasks",
        "samples",
        *(f"pass@{k}" for k in report.ks),
        *["majority"] * has_majority,
    ]
    rows = [
        (
            row_label(row),
            str(row.tasks),
            str(row.samples),
            *(figure(row.pass_at_k[k]) for k in report.ks),
            *[figure(row.majority)] * has_majority,
        )
        for row in report.rows
    ]
    return TextTable(f"Accuracy {SCALE}", tuple(columns), rows)


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
    units = "calls and tokens per episode, errors per call, malformed turns per turn"
    title = f"Behaviour ({units}) {SCALE}"
    return TextTable(title, columns, rows)
