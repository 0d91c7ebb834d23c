"""Runs on object storage (`s3://...`) for commands that read runs: each fetches what it needs."""

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

from cluster.cli.path_checks import run_at
from cluster.cli.run_rows import row_of
from cluster.config.places import storage_address
from cluster.lifecycle.mirroring import move_in
from envs.errors import ConfigError, StoreError, TrialrunError
from envs.tools import JsonObject
from rollout.mirror.address import is_address
from rollout.mirror.config import MirrorConfig
from rollout.mirror.copies import fetch_copy, runs_at
from rollout.mirror.place import Place
from rollout.store.run_directory import check_new_folder
from rollout.store.run_layout import RunLayout

CACHE = "TRIALRUN_CACHE"
"""Environment variable: the folder of copies, instead of `~/.cache/trialrun`."""
_POLL_S = 2.0
_CHECKPOINTS, _MODEL = "checkpoints/", "model/"


class Needs(Enum):
    """Which files of a run a command reads."""

    STATUS = "status"
    LOG = "log"
    METRICS = "metrics"
    EPISODES = "episodes"
    ALL = "all"

    def wants(self, path: str) -> bool:
        """Whether the file `path` of a run belongs to these."""
        if path.startswith((_CHECKPOINTS, _MODEL)):
            marks = path.endswith(("/complete", "model/config.json"))
            return self is Needs.ALL or (marks and self is not Needs.LOG)
        if "/" not in path:
            return path != "log.txt" or self in (Needs.LOG, Needs.ALL)
        if path.startswith("metrics/"):
            return self is not Needs.LOG
        if path.startswith(("ledger/", "index/", "episodes/")):
            return self in (Needs.EPISODES, Needs.ALL)
        return self is Needs.ALL


def address_place(text: str) -> Place:
    """Return the storage that `text` names. Raises ConfigError."""
    return Place(storage_address(text, os.environ, MirrorConfig()))


def local_run(run: str, needs: Needs) -> Path:
    """Return the directory of a run; for a mirror, of a copy with the files that are needed.

    Raises MissingError where there is none, ConfigError, StoreError and InfraError.
    """
    if not is_address(run):
        return run_at(Path(run)).root
    return fetch_copy(address_place(run), cache_folder(os.environ), needs.wants).path


def local_side(side: str, needs: Needs) -> str:
    """Return `[NAME=]RUN[,RUN]` with paths of copies in place of addresses."""
    if "://" not in side:
        return side
    name, found, runs = side.partition("=")
    if not found or not re.fullmatch(r"[^/:]*", name):
        name, runs = "", side
    paths = [str(local_run(run, needs)) if is_address(run) else run for run in runs.split(",")]
    return f"{name or Path(paths[0]).name}={','.join(paths)}"


def local_source(source: str) -> str:
    """Return `DIR[=WEIGHT]` with the path of a copy in place of an address."""
    if not is_address(source):
        return source
    weighted = re.fullmatch(r"(.*)=([0-9.]+)", source)
    address, weight = weighted.groups() if weighted else (source, "")
    path = str(local_run(address, Needs.ALL))
    return f"{path}={weight}" if weight else path


def mirrored_rows(address: str) -> list[JsonObject]:
    """Return a row for every run that is mirrored directly below `address`."""
    place = address_place(address)
    return [_row(place.below(name)) for name in runs_at(place)]


def _row(place: Place) -> JsonObject:
    try:
        copy = fetch_copy(place, cache_folder(os.environ), Needs.STATUS.wants)
    except TrialrunError as error:
        where = {"name": place.address.name, "kind": "?", "step": "?", "run_dir": str(place)}
        return {**where, "state": "unreadable", "problem": str(error)}
    return row_of(copy.path)


def print_log(run: str, write: Callable[[str], object], *, follow: bool) -> None:
    """Give `write` the log of a mirrored run; with `follow` until no writer claims the mirror."""
    place, shown = address_place(run), 0
    while True:
        copy = fetch_copy(place, cache_folder(os.environ), Needs.LOG.wants)
        log = RunLayout(copy.path).log
        content = log.read_bytes() if log.exists() else b""
        write(content[shown:].decode(errors="replace"))
        sys.stdout.flush()
        shown = len(content)
        if not (follow and copy.record.live):
            return
        time.sleep(_POLL_S)


def fetch_run(run: str, folder: Path) -> RunLayout:
    """Make the new or empty folder `folder` a run directory with everything that a mirror holds.

    Raises StoreError where there is something already, and as `local_run` does.
    """
    place = address_place(run)
    check_new_folder(folder)
    if RunLayout(folder).run_json.exists():
        raise StoreError(f"expected a new folder, found a run in {folder}: choose another")
    copy = fetch_copy(place, folder / ".fetching", Needs.ALL.wants)
    RunLayout(copy.path).mirror_copy.unlink()
    move_in(copy.path, folder)
    shutil.rmtree(folder / ".fetching")
    return RunLayout(folder)


def refuse_address(run: str, command: str) -> None:
    """Raise ConfigError where `command`, which needs the running job, gets a mirror."""
    if is_address(run):
        raise ConfigError(
            f"expected the name or the directory of a run in `trialrun {command}`, found the "
            f"mirror {run}, which can only be read"
        )


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of copies."""
    if given := environ.get(CACHE):
        return Path(given).expanduser().absolute() / "mirrors"
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "trialrun" / "mirrors"
