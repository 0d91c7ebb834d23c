"""Every command in the documentation runs here, or says what it needs and is at least accepted."""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster.cli.main import app
from cluster.config.run_config import load_config
from cluster.study.recipe import load_study
from tests.docs.documents import Block, blocks, run_blocks
from tests.project_tree import ROOT

BLOCKS = blocks()
RUNNING = {
    page.relative_to(ROOT).as_posix(): list(found)
    for page, found in groupby([block for block in BLOCKS if block.runs], lambda b: b.page)
}
_TAKES_RECIPES = {"sft", "train", "eval", "collect", "serve", "audit", "estimate"}
_LONG_PAGES = ("docs/mcp.md", "docs/quickstart.md")
_PLACEHOLDERS = ("RECIPE", "MODEL", "ENV")


def test_pages_have_commands() -> None:
    assert len(BLOCKS) > 8
    assert RUNNING


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_runs_in_a_test_or_says_what_it_needs(block: Block) -> None:
    assert block.is_marked, f"{block}: put <!-- run --> or <!-- needs: ... --> above the block"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_command_line_accepts_what_the_page_shows(block: Block) -> None:
    for words in block.commands:
        program = words[0].rpartition("/")[2]
        if program == "trialrun" and len(words) > 1:
            accept(words[1:])
        elif program == "make":
            target = next((word for word in words[1:] if "=" not in word), "help")
            text = (ROOT / "Makefile").read_text()
            assert f"\n{target}:" in text, f"{block}: no target {target}"
        elif program == "python" and "-m" in words:
            module = words[words.index("-m") + 1].replace(".", "/")
            exists = (ROOT / f"{module}.py").exists() or module.partition("/")[0] in (
                "pytest",
                "vllm",
            )
            assert exists, f"{block}: no module {module}"


def accept(arguments: list[str]) -> None:
    """Parse a command as `trialrun` does, and its recipe and overrides; run nothing.

    Raises what the command line would report as an error.
    """
    command: Any = typer.main.get_command(app)
    name, context = "trialrun", None
    names = []
    while hasattr(command, "resolve_command"):  # a group
        context = command.make_context(name, list(arguments), parent=context)
        rest = [*context._protected_args, *context.args]
        name, command, arguments = command.resolve_command(context, rest)
        names.append(name)
    values = command.make_context(name, list(arguments), parent=context).params
    recipe = values.get("recipe")
    if names[0] in _TAKES_RECIPES and recipe not in _PLACEHOLDERS:
        load_config(str(recipe), _overrides(values))
    elif names[0] == "study":
        load_study(str(recipe), _overrides(values))


def _overrides(values: dict[str, object]) -> list[str]:
    found: list[str] = []
    for name in ("overrides", "settings"):
        given = values.get(name) or ()
        assert isinstance(given, list | tuple)
        found += [str(word) for word in given]
    return found


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.long if page in _LONG_PAGES else ()) for page in RUNNING],
)
def test_the_commands_of_a_page_run_in_their_order(page: str, tmp_path: Path) -> None:
    run_blocks(RUNNING[page], tmp_path, 880)
