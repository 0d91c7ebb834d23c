"""Modules and files beside tool sources, inside a session's child. Standard library only.

Without a scratch folder there is no file system: files are then served from memory, to `open`,
`pathlib`, `os.stat` and `os.listdir`. With one they are real, for SQLite and the like.
"""

import base64
import builtins
import errno
import importlib.abc
import importlib.machinery
import importlib.util
import io
import marshal
import os
import posixpath
import stat
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

VIRTUAL_ROOT = "/tools"
_READ_ONLY = 0o444


class SiblingFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules from compiled code; `loads` returns that of one, or raises ImportError."""

    def __init__(self, names: Sequence[str], loads: Callable[[str], bytes], root: str) -> None:
        self._names = frozenset(names)
        self._loads = loads
        self._root = root

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module that is here."""
        if fullname not in self._names:
            return None
        below = f"{fullname}."
        is_package = any(name.startswith(below) for name in self._names)
        inside = fullname.replace(".", "/") + ("/__init__.py" if is_package else ".py")
        origin = f"{self._root}/{inside}"
        spec = importlib.util.spec_from_loader(fullname, self, origin=origin, is_package=is_package)
        if spec is not None:
            spec.has_location = True  # so that the module has `__file__`
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Use the usual kind of module."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the module's code in it."""
        exec(marshal.loads(self._loads(module.__name__)), module.__dict__)


def place_files(files: Mapping[str, str], scratch: str) -> str:
    """Make `files` (base64 by relative path) readable; return the folder that they are in."""
    contents = {path: base64.b64decode(text) for path, text in files.items()}
    if not scratch:
        _MemoryFiles(contents).install()
        return VIRTUAL_ROOT
    for path, content in contents.items():
        place = posixpath.join(scratch, path)
        os.makedirs(posixpath.dirname(place), exist_ok=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        with os.fdopen(os.open(place, flags, _READ_ONLY), "wb") as file:
            file.write(content)
    return scratch


def add_finder(names: Sequence[str], loads: Callable[[str], bytes], root: str) -> None:
    """Let tool sources import the modules `names`, before any other module."""
    sys.meta_path.insert(0, SiblingFinder(names, loads, root))


class _MemoryFiles:
    """Files in memory below VIRTUAL_ROOT, which is also where relative paths start."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._files = {posixpath.join(VIRTUAL_ROOT, path): body for path, body in contents.items()}
        self._folders: dict[str, set[str]] = {VIRTUAL_ROOT: set()}
        for path in self._files:
            while path != VIRTUAL_ROOT:
                folder, name = posixpath.split(path)
                self._folders.setdefault(folder, set()).add(name)
                path = folder
        self._real_open, self._real_stat, self._real_list = io.open, os.stat, os.listdir

    def install(self) -> None:
        """Take the place of the calls that would read the disk."""
        if not self._files:
            return
        builtins.open = io.open = self._open
        os.stat = self._stat
        os.listdir = self._list

    def _path(self, path: object) -> str:
        if not isinstance(path, str | os.PathLike):
            return ""
        text = os.fspath(path)
        return (
            posixpath.normpath(posixpath.join(VIRTUAL_ROOT, text)) if isinstance(text, str) else ""
        )

    def _open(self, file: Any, mode: str = "r", *args: Any, **keys: Any) -> Any:
        path = self._path(file)
        if path not in self._files:
            return self._real_open(file, mode, *args, **keys)
        if set(mode) & set("wax+"):
            raise PermissionError(errno.EACCES, "a file beside the tools is read-only", str(file))
        raw = io.BytesIO(self._files[path])
        if "b" in mode:
            return raw
        names = ("buffering", "encoding", "errors", "newline")
        text: dict[str, Any] = dict(zip(names, args, strict=False)) | keys
        return io.TextIOWrapper(
            raw,
            encoding=text.get("encoding") or "utf-8",
            errors=text.get("errors"),
            newline=text.get("newline"),
        )

    def _stat(self, path: Any, *args: Any, **keys: Any) -> os.stat_result:
        place = self._path(path)
        if place in self._files:
            size = len(self._files[place])
            return os.stat_result((stat.S_IFREG | _READ_ONLY, 0, 0, 1, 0, 0, size, 0, 0, 0))
        if place in self._folders:
            return os.stat_result((stat.S_IFDIR | 0o555, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        return self._real_stat(path, *args, **keys)

    def _list(self, path: Any = ".") -> list[str]:
        place = self._path(path)
        return sorted(self._folders[place]) if place in self._folders else self._real_list(path)
