"""The table of chat templates in docs/models.md.

`python -m tests.rollout.chat.template_table` writes it, between two comments.
"""

from pathlib import Path

from envs.errors import TemplateError
from rollout.chat.findings import thinking_of
from tests.project_tree import ROOT
from tests.rollout.chat.template_corpus import judged, template_files

PAGE = ROOT / "docs" / "models.md"
START = "<!-- templates: written by `python -m tests.rollout.chat.template_table` -->"
END = "<!-- end of templates -->"
_TOOLS = {"tool": "tool role", "user": "user turns"}


def row(file: Path) -> str:
    """Return the table's row of one template."""
    try:
        template, wrong = judged(file)
    except TemplateError as error:
        return f"| `{file.stem}` | refused: {error} | | | | |"
    return (
        "| "
        + " | ".join(
            (
                f"`{file.stem}`",
                f"wrong: {len(wrong)} differences" if wrong else "right",
                _TOOLS.get(template.tool_role, "after a call"),
                "yes" if template.system_role else "first user turn",
                thinking_of(template),
                "yes" if template.renders_tools else "no",
            )
        )
        + " |"
    )


def table() -> str:
    """Return the table as Markdown."""
    head = "| template | prompts | tool answers | system role | start of a turn | shows tools |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(row, template_files())])


def with_table(page: str) -> str:
    """Return the page with the table in its place."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), encoding="utf-8")
