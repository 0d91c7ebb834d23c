"""The tests that docs/algorithms.md and docs/determinism.md name exist."""

import ast
import re

import pytest

from tests.project_tree import ROOT

PAGES = ("docs/algorithms.md", "docs/determinism.md")


def named_tests(text: str) -> list[tuple[str, str]]:
    """Return (path, function or '') of every test in the backticks of `text`.

    `a/b::name` is short for `tests/learner/a/test_b.py::test_name`, `::name` for another test in
    the file named last.
    """
    found: list[tuple[str, str]] = []
    for name in re.findall(r"`([\w/.]*::\w+|tests/[\w/]+\.py)`", text):
        path, _, function = name.partition("::")
        if not path:
            path = found[-1][0]
        elif not path.startswith("tests/"):
            folder, _, file = path.rpartition("/")
            path = "/".join(part for part in ("tests/learner", folder, f"test_{file}.py") if part)
            function = f"test_{function}"
        found.append((path, function))
    return found


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_short_names_are_completed() -> None:
    text = "`config::a`, `objective/losses::b`, `::test_c`, `tests/e2e/test_x.py`, "
    text += "`tests/y.py::test_z`"
    assert named_tests(text) == [
        ("tests/learner/test_config.py", "test_a"),
        ("tests/learner/objective/test_losses.py", "test_b"),
        ("tests/learner/objective/test_losses.py", "test_c"),
        ("tests/e2e/test_x.py", ""),
        ("tests/y.py", "test_z"),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_named_test_exists(page: str) -> None:
    named = named_tests((ROOT / page).read_text())
    assert len(named) >= 3
    missing = [
        f"{path}::{function}"
        for path, function in named
        if not (ROOT / path).is_file() or (function and function not in functions_of(path))
    ]
    assert not missing, f"{page} names tests that do not exist: {missing}"


def test_every_named_case_of_trl_exists() -> None:
    cases = set(re.findall(r"`trl\[([\w -]+)\]`", (ROOT / "docs/algorithms.md").read_text()))
    source = (ROOT / "tests/learner/test_trl.py").read_text()
    assert len(cases) >= 15
    assert [case for case in sorted(cases) if f'"{case}"' not in source] == []
