"""One DuckDB for all runs, with one file per run in the cache folder.

The files are a cache: one that is damaged, of another version, or in use by another dashboard is
replaced by a new one.
"""

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from cluster.dashboard.index.schema import INDEX_VERSION, TABLES
from envs.errors import ConfigError

logger = logging.getLogger("trialrun.dashboard")
Row = tuple[Any, ...]


class Database:
    """The connection that all indexes share; `memory_mb` bounds them together."""

    def __init__(self, cache: Path, memory_mb: int, threads: int) -> None:
        self.cache = cache
        try:
            (cache / "spill").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write the index to {cache}: {error.strerror}; give another --cache"
            ) from error
        self._root = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{memory_mb}MB",
                "threads": threads,
                "temp_directory": str(cache / "spill"),
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "preserve_insertion_order": True,
            },
        )
        self._lock = threading.Lock()
        self._own: list[Path] = []

    def attach(self, key: str, run: str) -> str:
        """Open the index of a run, made new where there is none that fits; return its alias."""
        alias = f"run_{key}"
        path = self.cache / f"{key}.duckdb"
        with self._lock:
            if not self._try_attach(path, alias) or not self._fits(alias, run):
                path = self._replace(path, alias)
                self._create(alias, run)
        return alias

    def detach(self, alias: str) -> None:
        """Close the index of a run."""
        with self._lock, suppress(duckdb.Error):
            self._root.execute(f"DETACH {alias}")

    def reset(self, alias: str, key: str, run: str) -> None:
        """Make the index of a run anew: the run was replaced."""
        with self._lock:
            with suppress(duckdb.Error):
                self._root.execute(f"DETACH {alias}")
            self._replace(self.cache / f"{key}.duckdb", alias)
            self._create(alias, run)

    @contextmanager
    def cursor(self, alias: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection to one run's index, for one thread."""
        cursor = self._root.cursor()
        try:
            cursor.execute(f"USE {alias}")
            yield cursor
        finally:
            cursor.close()

    def close(self) -> None:
        """Close every index, and remove those that only this process used."""
        with self._lock:
            self._root.close()
            for path in self._own:
                path.unlink(missing_ok=True)
                path.with_name(f"{path.name}.wal").unlink(missing_ok=True)

    def _try_attach(self, path: Path, alias: str) -> bool:
        try:
            self._root.execute(f"ATTACH '{_quoted(path)}' AS {alias}")
        except (duckdb.Error, RuntimeError) as error:
            logger.info("the index %s cannot be opened (%s): it is made anew", path, error)
            return False
        return True

    def _fits(self, alias: str, run: str) -> bool:
        try:
            found = self._root.execute(f"SELECT version, run FROM {alias}.meta").fetchall()
        except duckdb.Error:
            found = []
        if found == [(INDEX_VERSION, run)]:
            return True
        self._root.execute(f"DETACH {alias}")
        return False

    def _replace(self, path: Path, alias: str) -> Path:
        """Attach an empty file at `path`, or beside it where another process holds that."""
        _remove(path)
        if self._try_attach(path, alias):
            return path
        own = path.with_name(f"{path.stem}-{os.getpid()}.duckdb")
        _remove(own)
        self._own.append(own)
        self._root.execute(f"ATTACH '{_quoted(own)}' AS {alias}")
        return own

    def _create(self, alias: str, run: str) -> None:
        with self.cursor(alias) as cursor:
            cursor.execute("BEGIN")
            cursor.execute(TABLES)
            cursor.execute("INSERT INTO meta VALUES (?, ?)", [INDEX_VERSION, run])
            cursor.execute("COMMIT")


def rows_of(
    cursor: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Sequence[Any] | Mapping[str, Any] = (),
) -> list[Row]:
    """Return the rows of a query with parameters by position or by name."""
    bound = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
    return cursor.execute(sql, bound).fetchall()


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells one run from another at the same path."""

    path: Path
    run: str
    created_at: float

    @property
    def key(self) -> str:
        """Name of the index's file."""
        return hashlib.blake2b(str(self.path).encode(), digest_size=8).hexdigest()

    @property
    def mark(self) -> str:
        """What the index must have been made of."""
        return f"{self.run} {self.created_at!r}"


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _remove(path: Path) -> None:
    """Remove an index that nobody holds; one that another process uses stays as it is."""
    if not path.exists() or _is_held(path):
        return
    path.unlink(missing_ok=True)
    wal = path.with_name(f"{path.name}.wal")
    if wal.is_dir():
        shutil.rmtree(wal)
    else:
        wal.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    """Whether another process has the file open; DuckDB locks it with fcntl."""
    try:
        probe = duckdb.connect(str(path))
    except duckdb.IOException as error:
        return "lock" in str(error).lower()
    except duckdb.Error:
        return False
    probe.close()
    return False
