"""The zygote: a preloaded, locked-down process that forks one child per session.

It never compiles or runs tool source. `envs/sandbox/link.py` starts it with one argument, the JSON
of ZygoteOptions. Over the control socket (SEQPACKET) it receives how many children to fork, as a
decimal number, and sends JSON: `ready` or `refused` once, then `child` (with the child's socket and
pidfd attached), `failed` and `exit`. It dies with the server.
"""

import gc
import json
import os
import resource
import select
import signal
import socket

from envs.errors import IsolationError
from envs.sandbox import confine as sandbox_confine
from envs.sandbox.imports import preload
from envs.sandbox.inside.child import SessionChild, warm_up
from envs.sandbox.lockdown import Achieved, lock_down
from envs.sandbox.options import ZygoteOptions
from envs.sandbox.scratch import AT_CAPACITY, Scratch, ScratchRoot, enter
from envs.sandbox.syscalls import FILE_RULES, LEAF_RULES

MIB = 2**20


class Zygote:
    """Forks session children on demand and reports their exits.

    It is created before the lock-down, because some calls of its constructor are refused
    afterwards.
    """

    def __init__(self, control: socket.socket, options: ZygoteOptions) -> None:
        self._control = control
        self._options = options
        rules = LEAF_RULES | (FILE_RULES if options.files else {})
        self._leaf_filter = sandbox_confine.SyscallFilter(sandbox_confine.check_platform(), rules)
        self._children: dict[int, str] = {}
        """Scratch folder by pid."""
        self._over: set[int] = set()
        """Children that were ended because their scratch folders had too much in them."""
        self._scratch: Scratch | None = None
        self._achieved = Achieved("none", 0, {})
        self._wakeup, wakeup_writer = socket.socketpair()
        for end in (self._wakeup, wakeup_writer):
            end.setblocking(False)
        self._wakeup_writer = wakeup_writer
        signal.signal(signal.SIGCHLD, lambda *_: None)
        sandbox_confine.ignore_stopped_children()
        signal.set_wakeup_fd(wakeup_writer.fileno(), warn_on_full_buffer=False)

    def serve(self, achieved: Achieved, scratch: Scratch | None) -> None:
        """Serve until the server closes the socket, then kill the children."""
        self._achieved, self._scratch = achieved, scratch
        poll = select.poll()
        for source in (self._control, self._wakeup, scratch):
            if source:
                poll.register(source, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._wakeup.fileno() in ready:
                self._wakeup.recv(4096)
                self._reap()
            if scratch and scratch.fileno() in ready:
                self._end(scratch.finished())
            if self._control.fileno() in ready:
                count = self._control.recv(64)
                if not count:
                    break
                for _ in range(int(count)):
                    self._fork()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _send(self, message: dict[str, object], *descriptors: int) -> None:
        socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)

    def _fork(self) -> None:
        folder = ""
        try:
            folder = self._scratch.take() if self._scratch else ""
            server_end, child_end = socket.socketpair()
            pid = os.fork()
        except OSError as error:
            if self._scratch and folder:
                self._scratch.give_back(folder)
            full = error.errno in AT_CAPACITY
            self._send({"kind": "failed", "message": str(error), "full": full})
            return
        if pid == 0:
            self._become_child(child_end.fileno(), folder)
        if self._achieved.level == "none":  # elsewhere it can have no children of its own
            os.setpgid(pid, pid)
        self._children[pid] = folder
        child_end.close()
        with server_end:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as error:  # without a pidfd, the server could not kill the child safely
                os.kill(pid, signal.SIGKILL)
                self._send({"kind": "failed", "message": f"pidfd_open: {error}"})
                return
            self._send({"kind": "child", "pid": pid}, server_end.fileno(), pidfd)
            os.close(pidfd)

    def _end(self, folder: str) -> None:
        """End the session that has `folder`, if one still has."""
        for pid, used in self._children.items():
            if folder and used == folder:
                self._over.add(pid)
                os.kill(pid, signal.SIGKILL)

    def _become_child(self, descriptor: int, folder: str) -> None:
        """Serve a session; never return, as a child must not enter the zygote's loop."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sandbox_confine.close_all_but(descriptor)
            sandbox_confine.die_with_parent()
            if folder:
                enter(folder)
                if self._achieved.landlock:
                    sandbox_confine.restrict_landlock(folder)
            self._limit_resources()
            if self._achieved.level != "none":
                self._leaf_filter.install()
            only = sandbox_confine.ONLY_DESCRIPTOR
            SessionChild(only, self._options.reply_limit_bytes).serve()
            os._exit(0)
        finally:
            os._exit(70)

    def _limit_resources(self) -> None:
        files = self._options.files
        for limit, value in (
            (resource.RLIMIT_AS, self._options.memory_mib * MIB),
            (resource.RLIMIT_NOFILE, self._options.descriptors),
            (resource.RLIMIT_FSIZE, self._options.scratch_mib * MIB if files else 0),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NPROC, 0),
        ):
            resource.setrlimit(limit, (value, value))
        # SIGXCPU at the first limit, and the kernel's SIGKILL a second later for who ignores it.
        cpu_s = self._options.cpu_s
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._scratch and pid == self._scratch.janitor_pid:
                raise SystemExit(1)  # folders would stay dirty; the server starts a new zygote
            folder = self._children.pop(pid)
            if self._scratch:
                self._scratch.give_back(folder)
            code = os.waitstatus_to_exitcode(status)
            cpu_s = usage.ru_utime + usage.ru_stime
            over = pid in self._over
            self._over.discard(pid)
            exit_ = {"kind": "exit", "pid": pid, "code": code, "cpu_s": cpu_s, "over": over}
            self._send(exit_)


def main(argument: str) -> None:
    """Serve session children to the server at the other end of the control socket."""
    options = ZygoteOptions.from_json(argument)
    # a low number, because children close every descriptor up to HIGHEST_DESCRIPTOR
    control = socket.socket(fileno=os.dup(options.control))
    os.close(options.control)
    try:
        zones = preload(options)
        os.environ.clear()  # not earlier: libraries read their number of threads from it
        warm_up()
        zygote = Zygote(control, options)
        root = ScratchRoot(options)
        achieved = lock_down(options, control, root)
        scratch = Scratch(root, options) if options.files else None
    except (OSError, IsolationError, ImportError) as error:
        control.send(json.dumps({"kind": "refused", "message": str(error)}).encode())
        raise SystemExit(1) from error
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"kind": "ready", **achieved.message()}).encode())
    zygote.serve(achieved, scratch)
    del zones
