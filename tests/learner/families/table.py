"""The table of families in docs/models.md: written by engine_check, compared by the tests."""

from collections.abc import Mapping
from typing import Any

from tests.learner.families.tiny_families import FAMILIES, ONE_BY_ONE, Family
from tests.project_tree import ROOT

PAGE = ROOT / "docs" / "models.md"
START = "<!-- families: python -m tests.learner.families.engine_check -->"
END = "<!-- /families -->"
LARGEST = {"float32": 1e-3, "bfloat16": 0.3}
"""Nats between learner and engine; vLLM's linear attention on a CPU computes in bfloat16 only."""
HEADER = (
    "| family | stands for | passes of the learner | learner | vLLM on a CPU |\n"
    "|---|---|---|---|---|"
)


def learner_cells(name: str, *, packs: bool) -> str:
    """Return the cells of a row that need no engine."""
    family = FAMILIES[name]
    if family.refused:
        return f"| {name} | {family.stands_for} | | refused at the start: `{family.refused}` |"
    passes = "packed" if packs else "one episode"
    if "sliding_window" in family.text:
        passes += ", window"
    return f"| {name} | {family.stands_for} | {passes} | right |"


def rows_of(text: str) -> dict[str, str]:
    """Return the rows of the table in `text` by family."""
    body = text.partition(START)[2].partition(END)[0].strip().splitlines()[2:]
    return {row.split("|")[1].strip(): row for row in body}


def write_table(results: Mapping[str, Any]) -> None:
    """Replace the table in docs/models.md by one of `results` (EngineResult by family)."""
    lines = []
    for name, family in FAMILIES.items():
        if family.refused:
            lines.append(f"{learner_cells(name, packs=False)} |")
            continue
        cells = learner_cells(name, packs=name not in ONE_BY_ONE)
        lines.append(f"{cells} {_engine_cell(family, results.get(name))} |")
    text = PAGE.read_text("utf-8")
    before, after = text.partition(START)[0], text.partition(END)[2]
    table = "\n".join([START, "", HEADER, *lines, "", END])
    PAGE.write_text(before + table + after, "utf-8")


def _engine_cell(family: Family, result: Any) -> str:
    if family.unserved:
        return f"refused at the start: {family.unserved}"
    if result.problem:
        return f"WRONG: {result.problem}"
    largest = max(result.start, result.pushed, result.exported)
    if not result.greedy or not largest < LARGEST[family.dtype]:
        return f"WRONG by {largest:.1g}"
    return "right" if family.dtype == "float32" else f"right within {largest:.1g}, in bfloat16"
