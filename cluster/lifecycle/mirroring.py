"""The mirror in the life of a run: checked and restored before it starts, kept while it runs."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import JsonValue

from cluster.config.places import storage_address
from cluster.config.run_config import RunConfig
from cluster.lifecycle.mirror_process import (
    FINISH,
    MirrorNews,
    MirrorOrder,
    check_mirror,
    read_state,
)
from cluster.progress import Progress, duration
from envs.errors import ConfigError, InfraError, MissingError, StoreError
from rollout.mirror.address import MirrorAddress
from rollout.mirror.claim import Claim, ClaimRecord, check_free
from rollout.mirror.download import fetch_files
from rollout.mirror.head import Head, read_head
from rollout.mirror.place import Place
from rollout.store.journal import make_folder, read_objects, replace_file
from rollout.store.run_directory import RunDirectory, check_new_folder
from rollout.store.run_kind import is_blank
from rollout.store.run_layout import RunLayout, is_number
from rollout.store.run_lock import is_written
from rollout.store.shared_files import read_bytes

_ROOT = Path(__file__).parents[2]
_RESTARTS = 3
"""How often a mirroring process that died is started again."""
_RESTART_S = 10.0
_SILENT_S = 5.0
"""Seconds that the end of a run waits without a word."""


def mirror_address(config: RunConfig, path: Path) -> MirrorAddress:
    """Return the address of the mirror of the run at `path`: where it is in `run.dir`, or its name,
    below `mirror.url`.
    """
    below = Path(config.run.dir).absolute()
    inside = path.absolute().is_relative_to(below) and path.absolute() != below
    name = path.absolute().relative_to(below).as_posix() if inside else path.name
    return storage_address(config.mirror.url, os.environ, config.mirror).below(name)


def check_and_restore(config: RunConfig, path: Path, progress: Progress, *, new: bool) -> None:
    """Check that the mirror of a run that is to start at `path` is its own, and free; restore the
    run from it where the run directory is not there.

    `new` says that no run is to be resumed. Does nothing for a recipe without a mirror. Raises
    StoreError for a mirror of another run, of another history of this run, with another writer, or
    with a run where a new one is wanted; InfraError where the storage does not answer and there is
    no run directory to go on from.
    """
    if not config.mirror.url:
        return
    address, layout = mirror_address(config, path), RunLayout(path)
    _check_apart(address, path)
    place = Place(address)
    here = layout.run_json.exists() and not is_blank(layout)
    try:
        head = read_head(place)
        if head is None and not here:
            _check_writable(place)
    except InfraError as error:
        if here:
            progress.say(
                f"the mirror is not checked, and is tried again while the run goes on: {error}"
            )
            return
        raise InfraError(
            f"{error}. Whether there is a run to resume is not known: check mirror.url, "
            "mirror.endpoint and the credentials in the environment, or leave out mirror.url"
        ) from error
    if here:
        if head is not None:
            check_mirror(place, head, layout)
        check_free(place, _own_claim(layout))
        return
    if head is None or not head.has_work:  # nothing, or a start that failed
        return
    if layout.run_json.exists():  # it has recorded nothing
        if is_written(layout):
            return
    else:
        check_new_folder(path)
    if new:
        raise StoreError(
            f"{place} holds the run {head.run!r} already, and there is no such run in {path}: "
            "resume it, which restores it (--resume; eval: --run), or choose another run.name or "
            "mirror.url"
        )
    restore(place, path, config.mirror.lease_s, progress)


def restore(place: Place, path: Path, lease_s: float, progress: Progress) -> None:
    """Make the run directory `path` from the mirror, and claim the mirror for it.

    Only the newest checkpoint is fetched. Metrics of later steps are left out: these steps are
    trained again. Raises StoreError, MissingError, InfraError.
    """
    claim = _claim(place, lease_s)
    progress.say(f"restoring the run from {place} (waits up to {lease_s:g} s for a lost writer)")
    claim.take()
    head = read_head(place)
    if head is None:
        raise MissingError(f"expected the mirror of a run at {place}, found none")
    newest = newest_step(head)
    with _renewed(claim):
        draft = path / f".restoring-{secrets.token_hex(4)}"
        make_folder(draft)
        try:
            fetch_files(place, head, draft, lambda name: _is_needed(name, newest))
            cut_metrics(RunLayout(draft), newest)
            replace_file(RunLayout(draft).mirror_claim, claim.record.token.encode())
            move_in(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    claim.check()
    after = f"the checkpoint of step {newest}" if newest else "no checkpoint yet"
    progress.say(f"restored {head.size / 2**20:.1f} MiB with {after} to {path}")


def newest_step(head: Head) -> int:
    """Return the step of the newest checkpoint in a mirror; 0 for none."""
    names = (file.path.split("/") for file in head.files)
    steps = [
        int(n[1]) for n in names if len(n) == 3 and n[0] == "checkpoints" and n[2] == "complete"
    ]
    return max(steps, default=0)


def _is_needed(name: str, newest: int) -> bool:
    folder, _, inner = name.partition("/")
    step = inner.partition("/")[0]
    return folder != "checkpoints" or (is_number(step) and int(step) == newest)


def _step_of(row: Mapping[str, JsonValue]) -> int:
    step = row.get("step")
    return step if isinstance(step, int) else 0


def cut_metrics(layout: RunLayout, step: int) -> None:
    """Leave out the metrics of steps after `step`, which are trained again; a run whose model is
    there trains no step again.
    """
    if layout.model.exists() or not layout.metrics.exists():
        return
    rows = read_objects(layout.metrics)
    lines = read_bytes(layout.metrics).splitlines(keepends=True)
    kept = [line for row, line in zip(rows, lines, strict=True) if _step_of(row) <= step]
    replace_file(layout.metrics, b"".join(kept))


def move_in(draft: Path, path: Path) -> None:
    """Move what is in `draft` to `path`, `run.json` last: without it there is no run, and a restore
    that was cut off is done again.
    """
    run_json = RunLayout(path).run_json
    run_json.unlink(missing_ok=True)
    for item in sorted(draft.iterdir(), key=lambda item: item.name == run_json.name):
        target = path / item.name
        if target.is_dir():
            shutil.rmtree(target)
        item.replace(target)
    for folder in RunLayout(path).folders:
        make_folder(folder)


def start_mirror(run: RunDirectory, config: RunConfig, progress: Progress) -> None:
    """Mirror `run` until it is closed, if the recipe says so."""
    if not config.mirror.url:
        return
    section, address = config.mirror, mirror_address(config, run.path)
    with suppress(InfraError):  # the mirroring process tries again
        check_free(Place(address), _own_claim(run.layout))
    order = MirrorOrder(
        run_dir=run.path.absolute(),
        address=str(address),
        endpoint=address.endpoint,
        region=address.region,
        interval_s=section.interval_s,
        max_mib_per_s=section.max_mib_per_s,
        lease_s=section.lease_s,
        token=secrets.token_hex(16),
        own_claim=_own_claim(run.layout),
    )
    mirror = RunningMirror(order, progress)
    progress.say(f"the run is mirrored at {address.with_options}")
    run.on_close(lambda: mirror.finish(section.final_wait_s))


def mirror_once(config: RunConfig, path: Path, progress: Progress) -> None:
    """Bring the mirror of a run that was closed up to date with files that were added since."""
    if config.mirror.url:
        with RunDirectory.open(path) as run:
            start_mirror(run, config, progress)


class RunningMirror:
    """The process that mirrors a run, as the run sees it."""

    def __init__(self, order: MirrorOrder, progress: Progress) -> None:
        self._order, self._progress = order, progress
        self._ended, self._over = False, False
        self._finishing = threading.Event()
        self._changing = threading.Lock()
        self._process = self._start()
        self._listener = threading.Thread(target=self._listen, name="mirror", daemon=True)
        self._listener.start()

    def finish(self, wait_s: float) -> None:
        """Let the mirror catch up, for at most `wait_s` seconds, and say what it lacks then."""
        with self._changing:
            self._finishing.set()
            self._ask_to_finish()
        try:
            self._listener.join(min(_SILENT_S, wait_s))
            if self._listener.is_alive():
                self._progress.phase(f"waiting for the mirror, {duration(wait_s)} at most")
                self._listener.join(max(0.0, wait_s - _SILENT_S))
        finally:
            self._close()
        if not self._ended:
            state = read_state(RunLayout(self._order.run_dir))
            behind = (state.behind if state else "") or "the last state of the run"
            problem = f": {state.problem}" if state and state.problem else ""
            self._progress.say(
                f"warning: the mirror {self._order.address} lacks {behind}{problem}. The run "
                f"directory {self._order.run_dir} has all of it; resuming the run there completes "
                "the mirror"
            )

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.lifecycle.mirror_process"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the run's, which then says `finish`
        )
        assert process.stdin is not None
        process.stdin.write(self._order.model_dump_json() + "\n")
        process.stdin.flush()
        return process

    def _ask_to_finish(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: what it said last counts
            self._process.stdin.write(f"{FINISH}\n")
            self._process.stdin.flush()

    def _close(self) -> None:
        """End the process, whatever it does, and the thread that listens to it."""
        with self._changing:
            self._over = True
            self._process.kill()
        self._process.wait()
        self._listener.join(_SILENT_S)
        _close_streams(self._process)

    def _listen(self) -> None:
        """Pass on what the process says; start it again where it died."""
        for attempt in range(_RESTARTS + 1):
            process = self._process
            assert process.stdout is not None
            for line in process.stdout:
                news = MirrorNews.model_validate_json(line)
                self._ended |= news.ended
                if news.say:
                    self._progress.say(news.say)
            code = process.wait()
            if code == 0 or self._over or attempt == _RESTARTS:
                return
            self._progress.say(f"the process that mirrors the run died (exit code {code})")
            self._finishing.wait(_RESTART_S)
            with self._changing:
                if self._over:
                    return
                _close_streams(process)
                self._order = self._order.model_copy(update={"own_claim": self._order.token})
                self._process = self._start()
                if self._finishing.is_set():
                    self._ask_to_finish()


def _close_streams(process: "subprocess.Popen[str]") -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


@contextmanager
def _renewed(claim: Claim) -> Iterator[None]:
    """Renew a claim while the block lasts."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(claim.beat_s):
            try:
                claim.renew()
            except InfraError:
                continue
            except StoreError:  # the check after the block says so
                return

    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _claim(place: Place, lease_s: float) -> Claim:
    record = ClaimRecord(
        token=secrets.token_hex(16), host=socket.gethostname(), pid=os.getpid(), lease_s=lease_s
    )
    return Claim(place, record)


def _own_claim(layout: RunLayout) -> str:
    try:
        return read_bytes(layout.mirror_claim).decode().strip()
    except OSError:
        return ""


def _check_apart(address: MirrorAddress, path: Path) -> None:
    """Raise ConfigError where a mirror in a folder and the run would lie in one another."""
    folder, run = Path(address.path).resolve(), path.resolve()
    inside = folder.is_relative_to(run) or run.is_relative_to(folder)
    if address.scheme == "file" and inside:
        raise ConfigError(
            f"expected the mirror apart from the run directory {run}, found it in {folder}: set "
            "mirror.url to another folder than run.dir"
        )


def _check_writable(place: Place) -> None:
    """Raise InfraError where nothing can be written there."""
    place.age_s("")
