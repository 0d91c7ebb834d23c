"""What a dashboard serves, where it listens, and who may use it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Role = Literal["viewer", "operator"]

DEFAULT_PORT = 8365
"""Not 8265, which is the port of Ray's own dashboard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The secrets of the two roles; an empty one opens nothing."""

    operator: str
    viewer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one dashboard process."""

    roots: tuple[Path, ...]
    """Run directories, or folders in which runs are looked for."""
    cache: Path
    """Folder of the indexes; it may be deleted at any time."""
    tokens: Tokens
    hosts: frozenset[str] = frozenset()
    """Host headers that are answered, in lower case, with their port."""
    origins: frozenset[str] = frozenset()
    """Origins that may send requests, such as `https://runs.example.org`."""
    secure_cookie: bool = False
    """Whether browsers send the cookie over HTTPS only."""
    demo: bool = False
    read_only: bool = False
    """Whether steering and writing are refused for everyone."""
    version: str = "unknown"
    poll_s: float = 0.25
    """How often files of open runs are looked at, in seconds."""
    memory_mb: int = 256
    """Memory that DuckDB may use for all runs together, in MiB."""
    threads: int = 2
    """Threads of DuckDB."""
    user: str = field(default="unknown")
    """User name that requests to jobs are recorded under."""


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of indexes for who names none."""
    base = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME", "/tmp"), ".cache")
    return Path(base) / "trialrun" / "dashboard"
