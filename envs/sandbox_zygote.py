"""The zygote: a preloaded, locked-down process that forks one child per session.

It never compiles or runs tool source. Started by `envs/sandbox.py` with one argument, JSON
`{"control": fd, "strongest": level, "memory_mib": n, "reply_limit_bytes": n}`. Over the control
socket (SEQPACKET) it takes `fork` and sends JSON: `ready` or `refused` once, then `child` (with the
child's socket and pidfd attached), `failed` and `exit`. It dies with the server.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import zoneinfo

from envs import sandbox_confine
from envs.errors import IsolationError
from envs.sandbox_child import CHILD_DESCRIPTORS, SessionChild
from envs.sandbox_syscalls import LEAF_RULES, ZYGOTE_RULES

PRELOADED = """
    abc array ast base64 binascii bisect calendar cmath codecs collections.abc colorsys contextlib
    copy csv dataclasses datetime decimal difflib encodings.ascii encodings.cp1252 encodings.idna
    encodings.latin_1 encodings.utf_16 enum fnmatch fractions functools graphlib hashlib heapq hmac
    html html.parser inspect io itertools json keyword locale logging math numbers operator pathlib
    pprint queue random re secrets statistics string stringprep struct textwrap threading time
    traceback types typing unicodedata urllib.parse uuid warnings weakref xml.etree.ElementTree zlib
    zoneinfo _strptime
"""
"""All that tool sources can import: no file can be read once the zygote is locked."""

_CHILD_SOCKET = 3
_HIGHEST_DESCRIPTOR = 1_024


class Zygote:
    """Forks session children on demand and reports their exits; made before the lock-down."""

    def __init__(self, control: socket.socket, memory_mib: int, reply_limit_bytes: int) -> None:
        self._control = control
        self._memory_bytes = memory_mib * 2**20
        self._reply_limit_bytes = reply_limit_bytes
        self._leaf_filter = sandbox_confine.filter_program(
            sandbox_confine.check_platform(), LEAF_RULES
        )
        self._children: set[int] = set()
        self._wakeup, wakeup_writer = socket.socketpair()
        for end in (self._wakeup, wakeup_writer):
            end.setblocking(False)
        self._wakeup_writer = wakeup_writer
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup_writer.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve until the server hangs up, then take the children along."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._wakeup.fileno() in ready:
                self._wakeup.recv(4096)
                self._reap()
            if self._control.fileno() in ready:
                if not self._control.recv(64):
                    break
                self._fork()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _send(self, message: dict[str, object], *descriptors: int) -> None:
        socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)

    def _fork(self) -> None:
        try:
            server_end, child_end = socket.socketpair()
            pid = os.fork()
        except OSError as error:
            self._send({"kind": "failed", "message": str(error)})
            return
        if pid == 0:
            self._become_child(child_end.fileno())
        self._children.add(pid)
        child_end.close()
        with server_end:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as error:  # nobody could end the child for certain
                os.kill(pid, signal.SIGKILL)
                self._send({"kind": "failed", "message": f"pidfd_open: {error}"})
                return
            self._send({"kind": "child", "pid": pid}, server_end.fileno(), pidfd)
            os.close(pidfd)

    def _become_child(self, descriptor: int) -> None:
        """Never returns: whatever goes wrong, a child must not fall back into the zygote's loop."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(descriptor, _CHILD_SOCKET)
            os.closerange(_CHILD_SOCKET + 1, _HIGHEST_DESCRIPTOR)
            sandbox_confine.die_with_parent()
            for limit, value in (
                (resource.RLIMIT_AS, self._memory_bytes),
                (resource.RLIMIT_NOFILE, CHILD_DESCRIPTORS),
                (resource.RLIMIT_FSIZE, 0),
                (resource.RLIMIT_CORE, 0),
                (resource.RLIMIT_NPROC, 0),
            ):
                resource.setrlimit(limit, (value, value))
            sandbox_confine.install_filter(self._leaf_filter)
            SessionChild(_CHILD_SOCKET, self._reply_limit_bytes).serve()
            os._exit(0)
        finally:
            os._exit(70)

    def _reap(self) -> None:
        while self._children:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            cpu_s = usage.ru_utime + usage.ru_stime
            self._send({"kind": "exit", "pid": pid, "code": code, "cpu_s": cpu_s})


def preload() -> list[object]:
    """Import all that tools may import; return what must stay referenced (time zones)."""
    for name in PRELOADED.split():
        importlib.import_module(name)
    zones: list[object] = [zoneinfo.ZoneInfo(key) for key in zoneinfo.available_timezones()]
    sys.path.clear()
    sys.path_importer_cache.clear()
    return zones


def lock_down(strongest: str, control: socket.socket) -> dict[str, object]:
    """Confine this process as far as the kernel allows and return the `ready` message.

    At level `namespaces` the caller goes on as the first process of a PID namespace, while its
    parent only waits for it.
    """
    refusals: dict[str, str] = {}
    level, landlock = "seccomp", 0
    quiet = os.open(os.devnull, os.O_RDWR)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # a machine short of memory takes tools first
    if strongest == "namespaces":
        if refusal := sandbox_confine.namespaces_refusal():
            refusals["namespaces"] = refusal
        else:
            level = "namespaces"
            sandbox_confine.unshare_namespaces()
            _fork_first_process(control)
            sandbox_confine.empty_root()
    sandbox_confine.drop_privileges()
    sandbox_confine.die_with_parent()
    if strongest != "seccomp":
        landlock = sandbox_confine.landlock_version()
        if landlock:
            sandbox_confine.restrict_landlock()
            level = level if level == "namespaces" else "landlock"
        else:
            refusals["landlock"] = "the kernel has no Landlock"
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    os.close(quiet)
    program = sandbox_confine.filter_program(sandbox_confine.check_platform(), ZYGOTE_RULES)
    sandbox_confine.install_filter(program)
    return {"kind": "ready", "level": level, "landlock": landlock, "refusals": refusals}


def _fork_first_process(control: socket.socket) -> None:
    """Return in the new PID namespace's first process; the old process waits for it and exits."""
    pid = os.fork()
    if pid == 0:
        return
    control.close()
    sandbox_confine.drop_privileges()
    sandbox_confine.die_with_parent()
    _, status = os.waitpid(pid, 0)
    os._exit(0 if status == 0 else 1)


def main(argument: str) -> None:
    """Serve session children to the server at the other end of the control socket."""
    options = json.loads(argument)
    # a low number: children close every descriptor up to _HIGHEST_DESCRIPTOR
    control = socket.socket(fileno=os.dup(options["control"]))
    os.close(options["control"])
    try:
        os.environ.clear()
        zones = preload()
        zygote = Zygote(control, options["memory_mib"], options["reply_limit_bytes"])
        ready = lock_down(options["strongest"], control)
    except (OSError, IsolationError) as error:
        control.send(json.dumps({"kind": "refused", "message": str(error)}).encode())
        raise SystemExit(1) from error
    gc.collect()
    gc.freeze()
    control.send(json.dumps(ready).encode())
    zygote.serve()
    del zones
