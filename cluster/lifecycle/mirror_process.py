"""The process that mirrors a run: `python -m cluster.lifecycle.mirror_process`, started by the run.

A process of its own, so that neither a slow storage nor its library can hold up the run. The first
line of its input is a MirrorOrder; the line `finish` asks it to bring the mirror up to date and
end. When its input ends without that, the run has died: it ends at once, and the mirror stays
the consistent state that it was. Each line of its output is a MirrorNews.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from envs.errors import InfraError, StoreError
from envs.process_watch import when_readable
from rollout.mirror.address import parse_address
from rollout.mirror.claim import Claim, ClaimRecord
from rollout.mirror.download import read_file
from rollout.mirror.head import Head, check_identity, check_lineage, read_head
from rollout.mirror.place import Place
from rollout.mirror.upload import Behind, Uploader
from rollout.store.journal import replace_file
from rollout.store.run_layout import RunLayout, read_run_info
from rollout.store.shared_files import read_bytes

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_QUIET_S = 60.0
"""Seconds between two lines that say that the storage fails."""
_BURST_S = 0.25
_FINISHING_S = 0.5
FINISH = "finish"
"""The line that asks to end."""


class MirrorOrder(BaseModel):
    """What to mirror, and where."""

    model_config = ConfigDict(frozen=True)

    run_dir: Path
    address: str
    endpoint: str
    region: str
    interval_s: float
    max_mib_per_s: float
    lease_s: float
    token: str
    own_claim: str
    """Token with which this run directory claimed the mirror last; empty for none."""


class MirrorNews(BaseModel):
    """What the run is told."""

    say: str = ""
    ended: bool = False
    """Whether the mirror is up to date and the process ends."""


class MirrorState(BaseModel):
    """`mirror.json` of a run directory: how its mirror is."""

    model_config = ConfigDict(extra="ignore")

    address: str
    state: str
    """`starting`, `up to date`, `behind`, `failing` or `given up`."""
    behind: str = ""
    """What the mirror lacks, in words."""
    behind_bytes: int = 0
    mirrored_at: float | None = None
    """When the mirror was last made a state of the run, in Unix seconds."""
    problem: str = ""


def read_state(layout: RunLayout) -> MirrorState | None:
    """Return what the mirroring process said last; None where there was none."""
    try:
        return MirrorState.model_validate_json(read_bytes(layout.mirror_state))
    except (OSError, ValidationError):
        return None


class Throttle:
    """Lets at most `nbytes_per_s` pass, over all threads; 0 lets everything pass."""

    def __init__(self, nbytes_per_s: float) -> None:
        self._rate = nbytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def __call__(self, nbytes: int) -> None:
        """Wait until `nbytes` may be sent."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            begins = max(self._free_at, now - _BURST_S)
            self._free_at = begins + nbytes / self._rate
        time.sleep(max(0.0, begins - now))


class MirrorProcess:
    """Mirrors one run, until it is told to finish."""

    def __init__(self, order: MirrorOrder, tell: Callable[[MirrorNews], None]) -> None:
        self._order, self._tell = order, tell
        self._layout = RunLayout(order.run_dir)
        self._place = Place(parse_address(order.address, order.endpoint, order.region))
        self._uploader = Uploader(
            layout=self._layout,
            place=self._place,
            run=read_run_info(self._layout),
            token=order.token,
            now=time.time,
            throttle=Throttle(order.max_mib_per_s * 2**20),
        )
        self._claim = Claim(
            self._place,
            ClaimRecord(
                token=order.token,
                host=socket.gethostname(),
                pid=os.getppid(),
                lease_s=order.lease_s,
            ),
        )
        self._mirrored_at: float | None = None
        self._finishing = False
        self._wakes = {work: threading.Event() for work in ("files", "bundles", "claim")}
        self._failing: dict[str, str] = {}
        """The last error of each kind of work that fails now."""
        self._said_at = -_QUIET_S
        self._given_up = ""
        self._recording = threading.Lock()

    def finish(self) -> None:
        """Bring the mirror up to date and end."""
        self._finishing = True
        self._record("")
        self._wake_all()

    def run(self) -> None:
        """Mirror until `finish`, or until the mirror is not this run's; tell what happens."""
        self._record("starting")
        if not self._until_done("files", self._start):
            return
        others = (("bundles", self._send_bundles), ("claim", self._renew))
        for name, work in others:
            threading.Thread(target=self._repeat, args=(name, work), daemon=True).start()
        self._repeat("files", self._commit)

    def _start(self) -> None:
        """Claim the mirror, which must be empty or of this run. Raises StoreError, InfraError."""
        head = read_head(self._place)
        if head is not None:
            check_mirror(self._place, head, self._layout)
            head = head if head.is_of(self._uploader.run) else None
        self._claim.take(self._order.own_claim)
        replace_file(self._layout.mirror_claim, self._order.token.encode())
        self._uploader.adopt(head)

    def _commit(self) -> None:
        self._claim.check()
        started = time.time()
        self._uploader.commit()
        self._mirrored_at = started
        self._record("")
        if self._finishing and not self._uploader.behind():
            self._uploader.clean()
            self._claim.release()
            self._failing.clear()  # what another thread could not do before is done
            self._record("")
            self._tell(MirrorNews(ended=True))
            os._exit(0)

    def _renew(self) -> None:
        self._claim.renew()
        if self._mirrored_at is not None:  # files may take long: how far they lag is seen anyway
            self._record("")

    def _send_bundles(self) -> None:
        if self._uploader.send_bundles():
            self._wakes["files"].set()

    def _repeat(self, name: str, work: Callable[[], object]) -> None:
        """Do `work` every interval, after a failure less often."""
        pause_s = self._claim.beat_s if name == "claim" else self._order.interval_s
        while self._until_done(name, work):
            urgent = self._finishing and name != "claim"
            self._wakes[name].wait(_FINISHING_S if urgent else pause_s)
            self._wakes[name].clear()

    def _until_done(self, name: str, work: Callable[[], object]) -> bool:
        """Do `work` until the storage takes it; return False where the mirror was given up."""
        pause_s = _FIRST_PAUSE_S
        while not self._given_up:
            try:
                work()
            except StoreError as error:
                self._give_up(str(error))
            except (InfraError, OSError) as error:
                self._note_failure(name, str(error))
                self._wakes[name].wait(pause_s)
                self._wakes[name].clear()
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._note_success(name)
                return True
        return False

    def _note_failure(self, name: str, problem: str) -> None:
        first = not self._failing
        self._failing[name] = problem
        self._record("failing")
        if first and time.monotonic() - self._said_at > _QUIET_S:
            self._said_at = time.monotonic()
            self._tell(
                MirrorNews(
                    say=f"the mirror falls behind: {problem}. The run goes on, and the mirror is "
                    "tried again and again"
                )
            )

    def _note_success(self, name: str) -> None:
        if self._failing.pop(name, None) is None or self._failing:
            return
        self._tell(MirrorNews(say=f"{self._place} takes files again"))
        self._wake_all()  # what failed with it need not wait for the rest of its pause

    def _give_up(self, problem: str) -> None:
        if not self._given_up:
            self._given_up = problem
            self._record("given up")
            self._tell(MirrorNews(say=f"the mirror has ended: {problem}"))
            self._wake_all()

    def _wake_all(self) -> None:
        for wake in self._wakes.values():
            wake.set()

    def _record(self, state: str) -> None:
        """Say in the run directory how the mirror is."""
        with self._recording:
            self._record_alone(state)

    def _record_alone(self, state: str) -> None:
        behind = self._uploader.behind()
        found = MirrorState(
            address=self._place.address.with_options,
            state=state or self._word(behind),
            behind=behind.text,
            behind_bytes=behind.nbytes,
            mirrored_at=self._mirrored_at,
            problem=self._given_up or next(iter(self._failing.values()), ""),
        )
        replace_file(self._layout.mirror_state, found.model_dump_json(indent=1).encode())

    def _word(self, behind: Behind) -> str:
        if self._given_up:
            return "given up"
        if self._failing:
            return "failing"
        return "behind" if behind or self._mirrored_at is None else "up to date"


def check_mirror(place: Place, head: Head, layout: RunLayout) -> None:
    """Raise StoreError unless `head` is an earlier state of the run in this directory, or what a
    failed start left, in which nothing is lost.
    """
    if not head.has_work:
        return
    check_identity(place, head, read_run_info(layout))
    manifest = head.by_path.get(layout.manifest.name)
    mirrored = read_file(place, manifest) if manifest else b""
    check_lineage(place, mirrored, read_bytes(layout.manifest))


def _tell(news: MirrorNews) -> None:
    sys.stdout.write(news.model_dump_json() + "\n")
    sys.stdout.flush()


def main() -> None:
    """Mirror the run that the first line of the input describes."""
    when_readable((os.pidfd_open(os.getppid()),), lambda: os._exit(1))
    threading.excepthook = _exit_on_error
    process = MirrorProcess(MirrorOrder.model_validate_json(sys.stdin.readline()), _tell)

    def obey() -> None:
        if sys.stdin.readline().strip() == FINISH:
            process.finish()
        else:
            os._exit(1)

    threading.Thread(target=obey, daemon=True).start()
    process.run()


def _exit_on_error(failed: threading.ExceptHookArgs) -> None:
    """A thread that ends by an error ends the process, so that the run hears of it."""
    sys.excepthook(failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback)
    os._exit(1)


if __name__ == "__main__":
    main()
