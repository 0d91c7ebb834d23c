"""Text tables for the terminal and for Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollout.evaluation.intervals import Interval
from rollout.evaluation.statistics import ClusteredEstimate
from rollout.transcript import inert

_PIPED_WIDTH = 200


@dataclass(frozen=True, slots=True)
class TextTable:
    """Columns and rows of text; the first `labels` columns are labels, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int = 1

    def rich(self) -> Table:
        """Return the table for a terminal.

        A line separates groups of rows whose labels start with the same word.
        """
        table = Table(title=cell(self.title), title_justify="left")
        for place, column in enumerate(self.columns):
            table.add_column(
                cell(column), justify="left" if place < self.labels else "right", no_wrap=not place
            )
        families = {_family(row) for row in self.rows}
        for row, following in zip_longest(self.rows, self.rows[1:]):
            ends = following is not None and _family(row) != _family(following)
            ends = ends and len(families) < len(self.rows)
            table.add_row(*map(cell, row), end_section=ends)
        return table

    def markdown(self) -> str:
        """Return the table as GitHub Markdown, with its title as a line above it."""
        rules = ["---" if place < self.labels else "---:" for place in range(len(self.columns))]
        lines = [self.columns, rules, *self.rows]
        body = "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)
        return f"**{markdown_text(self.title)}**\n\n{body}\n"


def print_tables(tables: Sequence[TextTable], notes: Sequence[str]) -> None:
    """Print tables, then notes; lines are wide if the output is not a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    for table in tables:
        console.print(table.rich())
    for note in notes:
        console.print(Text(f"Note: {inert(note)}."))


def cell(text: str) -> Text:
    """Return a text for a cell of a terminal's table: one line, without markup or control
    characters, whoever wrote it.
    """
    return Text(" ".join(inert(text).split()))


def markdown_text(text: str) -> str:
    """Return a text for a line of GitHub Markdown or a cell of its table: it can start no HTML,
    no link, no code and no further cell, whoever wrote it.
    """
    line = " ".join(inert(text).split())
    escaped = re.sub(r"[\\`<|]", r"\\\g<0>", line)
    return escaped.replace("](", "]\\(")


def figure(estimate: ClusteredEstimate | None, form: str = ".3f") -> str:
    """Return `value [low, high]`, or why there is no interval; `-` without a value."""
    if estimate is None or estimate.value is None:
        return "-"
    return with_interval(estimate.value, estimate.interval, estimate.clusters, form)


def with_interval(value: float, interval: Interval, clusters: int, form: str = ".3f") -> str:
    """Return `value [low, high]`, or the value and why there is no interval."""
    shown = interval_text(interval, form)
    if shown is None:
        shown = {0: "(no interval)", 1: "(n = 1)"}.get(clusters, "(no spread)")
    return f"{value:{form}} {shown}"


def interval_text(interval: Interval, form: str = ".3f") -> str | None:
    """Return `[low, high]`, or None where there is no interval."""
    if interval.low is None or interval.high is None:
        return None
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def _family(row: tuple[str, ...]) -> str:
    return row[0].partition(" ")[0]
