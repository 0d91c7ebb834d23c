"""The project's files and their imports, read from the syntax tree."""

import ast
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


ORDER = ("envs", "rollout", "learner", "cluster")


Rule = Callable[[str, ast.Module], list[str]]


@cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """Return every node of `tree`, walked once for all rules: walking is most of their time."""
    return tuple(ast.walk(tree))


@cache
def imported_names(tree: ast.Module) -> tuple[str, ...]:
    """Return the full name of every module imported anywhere in `tree`, `.` for a relative one.

    `from a import b` gives `a` and `a.b`, for `b` may be a module.
    """
    return tuple(_imported(tree))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in nodes(tree):
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


def broken(rule: Rule) -> list[str]:
    """Return what the project's modules do against `rule`."""
    return [
        f"{path}: {violation}"
        for path in project_modules()
        for violation in rule(path, tree_of(path))
    ]
