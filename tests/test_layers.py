"""The order of imports, who may import which vendor, names, sizes: read from the syntax tree.

`envs <- rollout <- learner <- cluster`: an import points left only. Each rule is a function from a
module's path and tree to its violations, and has a self-test that shows it a bad snippet.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("envs", "rollout", "learner", "cluster")

ROLLOUT_CONTRACTS = frozenset(
    {
        "rollout.checkpoint_layout",
        "rollout.config",
        "rollout.engine",
        "rollout.episode",
        "rollout.episode_schema",
        "rollout.template",
        "rollout.weight_files",
        "rollout.weights",
    }
)
"""All that `learner` may import of `rollout`."""

_ROLLOUT = (
    "httpx jinja2 numpy pyarrow pydantic safetensors tokenizers torch transformers vllm xxhash"
)
_LEARNER = (
    "deepspeed gguf numpy peft pyarrow pydantic safetensors tokenizers torch transformers xxhash"
)
_ENVS = (
    "anyio fastapi httpx httpx2 mcp mcp_types msgpack prometheus_client pydantic starlette uvicorn "
    "websockets yaml"
)
THIRD_PARTY = {
    "envs": frozenset(_ENVS.split()),
    "rollout": frozenset(_ROLLOUT.split()),
    "learner": frozenset(_LEARNER.split()),
}
"""What each package may import from outside; `cluster` may import everything."""

VENDORS = {
    "vllm": ("rollout/vllm_engine.py", "rollout/vllm_row_invariant.py", "rollout/vllm_weights.py"),
    "deepspeed": ("learner/deepspeed_backend.py",),
    "ray": ("cluster/*.py",),
    "fastapi": ("envs/tool_*.py", "envs/*_server.py", "cluster/dashboard*.py"),
    "uvicorn": ("envs/tool_server*.py", "cluster/*.py"),
    "mcp": ("envs/mcp_*.py",),
    "mcp_types": ("envs/mcp_*.py",),
    "httpx2": ("envs/mcp_*.py",),
    "websockets": ("envs/openenv_tools.py", "envs/tool_connection.py"),
    "peft": ("learner/peft_adapters.py",),
    "matplotlib": ("cluster/plots.py",),
    "torch": ("rollout/vllm_*.py", "learner/*.py", "cluster/*.py"),
    "transformers": ("rollout/template.py", "rollout/vllm_*.py", "learner/*.py", "cluster/*.py"),
}
"""The only files that may import a vendor's package."""

BANNED_NAMES = frozenset({"utils", "helpers", "common", "base", "manager"})
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of every module imported anywhere in `tree`, `.` for a relative one.

    `from a import b` yields `a` and `a.b`, for `b` may be a module.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=0, module=str(module), names=names):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "."
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module


def top(name: str) -> str:
    """Return the package that a dotted name begins with."""
    return name.partition(".")[0]


def wrong_arrows(path: str, tree: ast.Module) -> list[str]:
    """An import of a package that stands to the right, or a relative one."""
    package = path.split("/")[0]
    if package not in ORDER:
        return []
    right = ORDER[ORDER.index(package) + 1 :]
    names = imported_names(tree)
    return [
        "relative import: write it absolute" if name == "." else f"{package} imports {name}"
        for name in names
        if name == "." or top(name) in (*right, "tests", "requirements")
    ]


def beyond_contracts(path: str, tree: ast.Module) -> list[str]:
    """An import of `rollout` by `learner` that is not one of the contract modules."""
    if not path.startswith("learner/"):
        return []
    return [
        f"learner imports {name}, which is no contract module"
        for name in imported_names(tree)
        if top(name) == "rollout"
        and name not in ROLLOUT_CONTRACTS
        and name.rpartition(".")[0] not in ROLLOUT_CONTRACTS
        and name != "rollout"
    ]


def misplaced_vendors(path: str, tree: ast.Module) -> list[str]:
    """A vendor outside its files, or a package that this layer may not use."""
    package = path.split("/")[0]
    if package not in ORDER:
        return []
    found = []
    for name in sorted({top(name) for name in imported_names(tree)} - {"."}):
        homes = VENDORS.get(name)
        if homes is not None and not any(fnmatch(path, home) for home in homes):
            found.append(f"{name} may be imported only by {', '.join(homes)}")
        allowed = THIRD_PARTY.get(package)
        ours = name in ORDER or name in sys.stdlib_module_names
        if allowed is not None and not ours and name not in allowed:
            found.append(f"{package}/ may not import {name}")
    return found


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
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


Rule = Callable[[str, ast.Module], list[str]]
RULES: tuple[Rule, ...] = (
    wrong_arrows,
    beyond_contracts,
    misplaced_vendors,
    banned_module_names,
    package_markers,
    too_long,
)

# Spelt in pieces, or this file would be its own first finding.
MACHINE_PATHS = re.compile(r"(?<![\w./~-])/(?:work|opt|root" + r"|home/\w+)/[\w.-]")
REGISTRY_HOSTS = re.compile(
    r"pypi\.org" + r"|files\.python" + r"hosted|artifact" + r"ory|://[^\s/]+/(?:\S+/)?simple\b",
    re.I,
)


def project_files() -> list[Path]:
    """Every file that is, or would be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def project_modules() -> list[str]:
    """Every Python file, as a path relative to the root."""
    return [path.relative_to(ROOT).as_posix() for path in project_files() if path.suffix == ".py"]


@cache
def tree_of(path: str) -> ast.Module:
    """Parse a module, once for all rules."""
    return ast.parse((ROOT / path).read_text())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    found = [
        f"{path}: {violation}"
        for path in project_modules()
        for violation in rule(path, tree_of(path))
    ]
    assert not found, "\n".join(found)


def test_no_file_is_too_long() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in project_modules()}
    long = {path: length for path, length in lengths.items() if length > MAX_FILE_LINES}
    assert not long, f"{MAX_FILE_LINES} lines is the end: {long}"


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
        (wrong_arrows, "envs/tools.py", "import rollout"),
        (wrong_arrows, "rollout/runner.py", "from learner.losses import grpo"),
        (wrong_arrows, "rollout/runner.py", "def f():\n    import cluster.train"),
        (
            wrong_arrows,
            "learner/batch.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cluster import pool",
        ),
        (
            wrong_arrows,
            "envs/tools.py",
            "import importlib\nimportlib.import_module('cluster.x')",
        ),
        (wrong_arrows, "envs/tools.py", "from .tasks import Task"),
        (wrong_arrows, "cluster/train.py", "import tests.rollout"),
        (beyond_contracts, "learner/batch.py", "from rollout.runner import run"),
        (beyond_contracts, "learner/batch.py", "from rollout import runner"),
        (misplaced_vendors, "rollout/runner.py", "import vllm.config"),
        (misplaced_vendors, "cluster/train.py", "from vllm import AsyncLLM"),
        (misplaced_vendors, "learner/trainer.py", "def f():\n    import deepspeed"),
        (misplaced_vendors, "learner/trainer.py", "import ray"),
        (misplaced_vendors, "rollout/runner.py", "from torch import nn"),
        (misplaced_vendors, "envs/tasks.py", "import pyarrow"),
        (misplaced_vendors, "envs/tasks.py", "from fastapi import FastAPI"),
        (misplaced_vendors, "rollout/segments.py", "import pandas"),
        (banned_module_names, "rollout/utils.py", ""),
        (banned_module_names, "tests/common/test_x.py", ""),
        (package_markers, "tests/envs/__init__.py", ""),
        (package_markers, "envs/__init__.py", "from envs.tools import Tool"),
        (too_long, "envs/tools.py", "def f():\n" + "    pass\n" * 60),
    ],
)
def test_a_bad_module_is_caught(rule: Rule, path: str, source: str) -> None:
    assert rule(path, ast.parse(source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cluster/train.py", "import ray\nfrom learner.trainer import Trainer\nimport envs.tools"),
        ("learner/batch.py", "from rollout.episode import Episode\nimport torch, pyarrow"),
        ("learner/batch.py", "from rollout import episode"),
        ("rollout/vllm_engine.py", "import vllm\nfrom torch import Tensor"),
        ("envs/tool_server.py", "import asyncio\nfrom fastapi import FastAPI"),
        ("envs/__init__.py", ""),
        ("envs/tools.py", "def f():\n" + "    pass\n" * 59),
        ("tests/envs/test_tools.py", "import ray, vllm, cluster.train"),
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
