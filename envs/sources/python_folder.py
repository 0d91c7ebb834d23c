"""What belongs to a Python source in a folder: the modules that it imports, and the files it names.

Only what the source itself asks for is taken, and nothing that is `hidden`: tools must not be able
to read the tasks or their scorers.
"""

import ast
import base64
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.errors import DataFileError, MissingError
from envs.sources.python import parsed
from envs.sources.python_limits import SOURCE_BYTES
from envs.tools import ToolSet

MAX_BYTES = 16 * 2**20
"""Most bytes of files beside the tools of one task."""
_MODULES = 500
"""Most modules that one source may bring with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """Files that tools must not get: `refused` may not be named, `skipped` are left out of folders
    that are taken whole.
    """

    refused: tuple[Path, ...] = ()
    skipped: tuple[Path, ...] = ()


NOTHING = Hidden()


@dataclass(frozen=True, slots=True)
class Folder:
    """A source with what belongs to it; `modules` has the source itself too."""

    name: str
    text: str
    modules: dict[str, str]
    trees: dict[str, ast.Module]
    files: dict[str, str] = field(default_factory=dict)
    """In base64, by path relative to the folder."""

    def completed(self, tool_set: ToolSet, *, named: bool = True) -> ToolSet:
        """Return a set of tools of the source together with what belongs to it.

        Without `named`, a module that nothing refers to has no name: so a set has the digest that
        it always had.
        """
        alone = not self.files and len(self.modules) == 1 and "__file__" not in self.text
        if alone and not named and not tool_set.setup:
            return tool_set
        return tool_set.model_copy(update={"modules": self.modules, "files": self.files})


def read_folder(path: Path, hidden: Hidden = NOTHING, named: Sequence[str] = ()) -> Folder:
    """Read a source and what it imports or names from its folder, and the files or folders `named`.

    A file is taken if a text in the source is its relative path. Raises MissingError, and
    DataFileError for a source that is not Python, a hidden file, or too many bytes.
    """
    root = path.parent
    refused = {each.resolve() for each in hidden.refused}
    reader = _Reader(root, refused)
    skipped = refused | {each.resolve() for each in hidden.skipped}
    name = _module_name(path.stem)
    text = reader.read(name, path)
    files = {
        place: base64.b64encode(reader.content(place)).decode()
        for place in (*reader.named_files(), *_listed(root, named, skipped))
    }
    return Folder(name, text, reader.modules, reader.trees, files)


def _module_name(stem: str) -> str:
    """Return the name of a source's module, which must not hide one of the standard library."""
    name = stem.replace(".", "_")
    return f"{name}_" if name in sys.stdlib_module_names else name


class _Reader:
    """Follows the imports of a source through its folder."""

    def __init__(self, root: Path, hidden: Collection[Path]) -> None:
        self._root = root
        self._hidden = hidden
        self._bytes = 0
        self._found: list[tuple[str, Path]] = []
        """Modules that are not read yet."""
        self.modules: dict[str, str] = {}
        self.trees: dict[str, ast.Module] = {}

    def read(self, name: str, path: Path) -> str:
        """Add a module and all that it imports; return its source."""
        self._found.append((name, path))
        while self._found:
            self._add(*self._found.pop())
            if len(self.modules) > _MODULES:
                raise DataFileError(f"{path}: expected at most {_MODULES} modules that it imports")
        return self.modules[name]

    def _add(self, name: str, path: Path) -> None:
        """Add a module, and note what it imports."""
        if name in self.modules:
            return
        self._check(path)
        text = read_text(path)
        try:
            tree = parsed(text)
        except DataFileError as error:
            raise DataFileError(f"{path}: {error}") from error
        self.modules[name], self.trees[name] = text, tree
        is_package = path.name == "__init__.py"
        for imported in _imports(tree, name if is_package else name.rpartition(".")[0]):
            self._add_import(imported)

    def _add_import(self, name: str) -> None:
        """Add a module that is in the folder, and the packages that it is in."""
        if name.partition(".")[0] in sys.stdlib_module_names:
            return
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            inner, place = ".".join(parts[:length]), self._root.joinpath(*parts[:length])
            if inner in self.modules:
                continue
            if place.with_suffix(".py").is_file():
                self._found.append((inner, place.with_suffix(".py")))
            elif (place / "__init__.py").is_file():
                self._found.append((inner, place / "__init__.py"))
            elif place.is_dir() and any(place.glob("*.py")):
                self.modules[inner], self.trees[inner] = "", ast.parse("")
            else:
                return

    def named_files(self) -> Iterator[str]:
        """Yield the relative paths of files that are texts in the sources."""
        texts = (
            node.value
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        for text in sorted({text for text in texts if _may_be_path(text)}):
            place = self._root / text
            if place.is_file() and place.resolve().is_relative_to(self._root.resolve()):
                yield Path(text).as_posix()

    def content(self, place: str) -> bytes:
        """Return the bytes of a file beside the source.

        Raises DataFileError if it is hidden, or all files together are too long.
        """
        path = self._root / place
        self._check(path)
        self._bytes += path.stat().st_size
        if self._bytes > MAX_BYTES:  # before it is read
            raise DataFileError(
                f"{self._root}: expected files of at most {MAX_BYTES} bytes beside the tools"
            )
        return path.read_bytes()

    def _check(self, path: Path) -> None:
        if path.resolve() in self._hidden:
            raise DataFileError(
                f"expected tools that do not read {path.name}, found that they import or name it: "
                "it has answers or a scorer; put what both need into another file"
            )


def read_text(path: Path) -> str:
    """Return the text of a source. Raises MissingError, DataFileError."""
    try:
        if (size := path.stat().st_size) > SOURCE_BYTES:
            raise DataFileError(
                f"{path}: expected Python source of at most {SOURCE_BYTES} bytes, found {size}: "
                "put data into files beside it"
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MissingError(f"expected a file at {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: expected text in UTF-8, found {error}") from error


def merged(sets: Sequence[ToolSet]) -> ToolSet:
    """Return several sets of Python tools as one, whose modules are shared.

    Raises DataFileError where two of them have different modules, files or classes of one name:
    their states could not be told apart.
    """
    classes: dict[str, tuple[str, object]] = {}
    for tool_set in sets:
        for name, source in zip(tool_set.functions, tool_set.sources, strict=True):
            kind = name.rpartition(".")[0]
            own = (source, tool_set.setup.get(kind))
            if kind and classes.setdefault(kind, own) != own:
                raise DataFileError(
                    f"two sources have a class {kind!r} that differs, or gets other `arguments`: "
                    "rename one"
                )
    found: dict[str, dict[str, object]] = {"modules": {}, "files": {}}
    for tool_set in sets:
        for key, values in found.items():
            for name, value in getattr(tool_set, key).items():
                if values.setdefault(name, value) != value:
                    raise DataFileError(
                        f"two sources have {_KINDS[key]} {name!r} that differ: rename one"
                    )
    return ToolSet.model_validate(
        {
            "tools": [tool for tool_set in sets for tool in tool_set.tools],
            "sources": [source for tool_set in sets for source in tool_set.sources],
            "functions": [name for tool_set in sets for name in tool_set.functions],
            "setup": {name: given for each in sets for name, given in each.setup.items()},
            **found,
        }
    )


_KINDS = {"modules": "a module", "files": "a file"}


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the names of all modules that a module of `package` may import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                if not package or not above:
                    raise DataFileError(
                        f"line {node.lineno}: expected an import by name, found a relative one "
                        "outside of a package: leave out the dots"
                    )
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _may_be_path(text: str) -> bool:
    return 0 < len(text) < 256 and "\0" not in text and "\n" not in text and text[0] not in "/."


def _listed(root: Path, named: Sequence[str], skipped: Collection[Path]) -> Iterator[str]:
    """Yield the relative paths of `named` files, and of the others in `named` folders."""
    for name in named:
        place = root / name
        if not place.resolve().is_relative_to(root.resolve()) or not place.exists():
            raise MissingError(f"expected a file or folder in {root}, found none at {place}")
        if place.is_file():
            yield place.relative_to(root).as_posix()
            continue
        yield from (
            path.relative_to(root).as_posix()
            for path in sorted(place.rglob("*"))
            if path.is_file()
            and path.suffix not in (".py", ".pyc")
            and path.resolve() not in skipped
        )
