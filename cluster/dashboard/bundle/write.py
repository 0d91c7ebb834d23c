"""`trialrun dashboard bundle`: a snapshot of a run as one HTML file, or a folder with data too."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import JsonValue

from cluster.dashboard.bundle.answers import Chosen, snapshot_of
from cluster.dashboard.bundle.page import html_of
from cluster.dashboard.index.library import run_id
from cluster.dashboard.settings import Settings, Tokens, cache_folder
from cluster.dashboard.terminal.commands import Export, export_episodes
from envs.errors import ConfigError, MissingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What is written, and where."""

    path: Path
    """Run directory."""
    target: Path
    """New file that ends in .html, or new folder."""
    filter_text: str = ""
    limit: int = 200
    """Episodes at most, the newest."""


def write_bundle(wanted: Bundle, environ: Mapping[str, str]) -> dict[str, JsonValue]:
    """Write a snapshot; return where, its size and how many episodes it has.

    Raises ConfigError where the target exists, or for a filter that cannot be read or matches
    nothing.
    """
    target = wanted.target.absolute()
    if target.exists():
        raise ConfigError(f"expected the name of a new file or folder, found that {target} exists")
    if not target.parent.is_dir():
        raise MissingError(f"expected the folder {target.parent}, found none")
    path = wanted.path.resolve()
    settings = Settings(
        roots=(path,),
        cache=cache_folder(environ),
        tokens=Tokens(operator="", viewer=""),
        read_only=True,
    )
    chosen = Chosen(run=run_id(path), filter_text=wanted.filter_text, limit=wanted.limit)
    content = asyncio.run(snapshot_of(settings, chosen))
    html = html_of(content, f"{path.name} · trialrun").encode()
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        page = Path(folder) / "index.html"
        page.write_bytes(html)
        if target.suffix == ".html":
            os.replace(page, target)
        else:
            _write_folder(page, target, wanted)
    return {"file": str(target), "bytes": len(html), "episodes": len(content["rows"])}


def _write_folder(page: Path, target: Path, wanted: Bundle) -> None:
    """Write the page and, for programs, the table of the episodes that match."""
    whole = Export(filter_text=wanted.filter_text, whole=False, tokens=False)
    export_episodes(wanted.path, page.parent / "episodes.parquet", whole)
    target.mkdir()
    for file in sorted(page.parent.iterdir()):
        os.replace(file, target / file.name)
