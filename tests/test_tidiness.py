"""Names and sizes of modules, and what no file may say of the machine that it was written on."""

import ast
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from tests.project_tree import (
    ORDER,
    ROOT,
    Rule,
    broken,
    nodes,
    project_files,
    project_modules,
)

BANNED_NAMES = frozenset({"utils", "helpers", "common", "base", "manager"})


MAX_FILE_LINES = 400


MAX_FUNCTION_LINES = 60


MAX_FOLDER_MODULES = 20


MAX_ALIKE_FIELDS = 3
SIMPLE_TYPES = frozenset({"str", "int", "float"})
POSITIONAL_RECORDS = frozenset({"Lease", "Extent"})
"""Records that break the rule about positional fields today; to be emptied, not extended."""


def banned_module_names(path: str, tree: ast.Module) -> list[str]:
    """A file or folder whose name says nothing."""
    parts = Path(path).with_suffix("").parts
    return [f"no module is called {part}" for part in parts if part in BANNED_NAMES]


def package_markers(path: str, tree: ast.Module) -> list[str]:
    """`__init__.py` is empty, and does not exist under tests (it would shadow our packages)."""
    if Path(path).name != "__init__.py":
        return []
    if path.startswith("tests/"):
        return ["no __init__.py under tests"]
    return ["__init__.py must be empty"] if tree.body else []


def too_long(path: str, tree: ast.Module) -> list[str]:
    """A function of more than 60 lines."""
    return [
        f"{node.name} has {length} lines, {MAX_FUNCTION_LINES} is the end"
        for node in nodes(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def positional_records(path: str, tree: ast.Module) -> list[str]:
    """A dataclass with four adjacent fields of one simple type that is not `kw_only`.

    The order of its positional arguments could be confused without any error.
    """
    if path.split("/")[0] not in ORDER:
        return []
    return [
        f"{node.name} has {MAX_ALIKE_FIELDS + 1} adjacent fields of one type: make it kw_only"
        for node in nodes(tree)
        if isinstance(node, ast.ClassDef)
        and node.name not in POSITIONAL_RECORDS
        and is_positional_dataclass(node)
        and longest_alike(node) > MAX_ALIKE_FIELDS
    ]


def is_positional_dataclass(node: ast.ClassDef) -> bool:
    """Whether `node` is decorated with `dataclass`, without `kw_only=True`."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(
        text.partition("(")[0] in ("dataclass", "dataclasses.dataclass")
        and "kw_only=True" not in text
        for text in decorators
    )


def longest_alike(node: ast.ClassDef) -> int:
    """Return the largest number of adjacent fields of `node` with the same simple type."""
    fields = [
        ast.unparse(child.annotation) for child in node.body if isinstance(child, ast.AnnAssign)
    ]
    runs = [len(list(run)) for name, run in groupby(fields) if name in SIMPLE_TYPES]
    return max(runs, default=0)


RULES: tuple[Rule, ...] = (banned_module_names, package_markers, too_long, positional_records)

ALIKE = "@dataclass\nclass Four:\n    a: str\n    b: str\n    c: str\n    d: str\n"

# Spelt in pieces, or this file would be its own first finding.
MACHINE_PATHS = re.compile(r"(?<![\w./~-])/(?:work|opt|root" + r"|home/\w+)/[\w.-]")


REGISTRY_HOSTS = re.compile(
    r"pypi\.org" + r"|files\.python" + r"hosted|artifact" + r"ory|://[^\s/]+/(?:\S+/)?simple\b",
    re.I,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    found = broken(rule)
    assert not found, "\n".join(found)


def test_no_file_is_too_long() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in project_modules()}
    long = {path: length for path, length in lengths.items() if length > MAX_FILE_LINES}
    assert not long, f"{MAX_FILE_LINES} lines is the end: {long}"


def test_no_folder_of_product_code_holds_too_many_modules() -> None:
    folders = Counter(
        path.rpartition("/")[0] for path in project_modules() if path.split("/")[0] in ORDER
    )
    full = {folder: count for folder, count in folders.items() if count > MAX_FOLDER_MODULES + 1}
    assert not full, f"{MAX_FOLDER_MODULES} modules and __init__.py is the end: {full}"


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRY_HOSTS], ids=["paths", "hosts"])
def test_nothing_names_the_machine_it_was_written_on(pattern: re.Pattern[str]) -> None:
    found = []
    for path in project_files():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {match[0]}"
            for number, line in enumerate(lines, 1)
            for match in pattern.finditer(line)
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (banned_module_names, "rollout/utils.py", ""),
        (banned_module_names, "tests/common/test_x.py", ""),
        (package_markers, "tests/envs/__init__.py", ""),
        (package_markers, "envs/__init__.py", "from envs.tools import Tool"),
        (too_long, "envs/tools.py", "def f():\n" + "    pass\n" * 60),
        (positional_records, "envs/tools.py", ALIKE),
        (positional_records, "envs/tools.py", ALIKE.replace("dataclass", "dataclass(slots=True)")),
    ],
)
def test_a_bad_module_is_caught(rule: Rule, path: str, source: str) -> None:
    assert rule(path, ast.parse(source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("envs/__init__.py", ""),
        ("envs/tools.py", "def f():\n" + "    pass\n" * 59),
        ("envs/tools.py", ALIKE.replace("dataclass", "dataclass(kw_only=True)")),
        ("envs/tools.py", ALIKE.replace("c: str", "c: int")),
        ("envs/tools.py", ALIKE.removeprefix("@dataclass\n")),
        ("tests/envs/test_tools.py", ALIKE),
    ],
)
def test_a_good_module_is_not(path: str, source: str) -> None:
    assert [violation for rule in RULES for violation in rule(path, ast.parse(source))] == []


def test_machine_paths_and_registry_hosts_are_told_from_other_text() -> None:
    assert MACHINE_PATHS.search("see " + "/work/" + "main")
    assert MACHINE_PATHS.search("-f " + "/opt/" + "wheels")
    assert REGISTRY_HOSTS.search("https://host.example/" + "simple")
    assert REGISTRY_HOSTS.search("https://pypi" + ".org/project/x")
    for text in (
        "https://download.pytorch.org/whl/cpu/torch/",
        "src/work/x",
        "a ~/work/x",
        "opt/x",
    ):
        assert not MACHINE_PATHS.search(text)
        assert not REGISTRY_HOSTS.search(text)
