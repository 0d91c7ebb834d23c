"""What hostile tools attack, and how one sees from outside whether they got there."""

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import psutil

NOBODY = 65_534
_NEEDLE = "trialrun-secret-"
_GROWTH_BYTES = 96 * 2**20


def _new_secret() -> str:
    return _NEEDLE + secrets.token_hex(16)


class World:
    """Canaries, listeners, a process to attack, and secrets; made before the sandbox starts.

    `harm` names what changed since it was last asked. The process that makes a World gives its
    standard output and error to it.
    """

    def __init__(self) -> None:
        self.mark = "trialrun-probe-" + secrets.token_hex(6)
        self.folder = Path(tempfile.mkdtemp(prefix="trialrun-world-"))
        self.folder.chmod(0o777)
        self.secrets = {
            name: _new_secret() for name in ("file", "environment", "heap", "victim", "session")
        }
        os.environ["TRIALRUN_SECRET"] = self.secrets["environment"]
        self._write_canaries()
        self._leaked = os.open(self.folder / "victim", os.O_RDWR)
        self._leaked_folder = os.open(self.folder, os.O_RDONLY)
        for descriptor in (self._leaked, self._leaked_folder):
            os.set_inheritable(descriptor, True)
        self._output = os.open(self.folder.with_suffix(".output"), os.O_RDWR | os.O_CREAT, 0o600)
        for descriptor in (1, 2):
            os.dup2(self._output, descriptor)
        self._listen()
        self._victim = self._new_victim()
        self._files = self._snapshot()
        self._own = self._own_state()
        self._memory = psutil.Process().memory_info().rss
        self._output_bytes = 0

    def names(self) -> dict[str, object]:
        """Return the constants that a probe's source may use; no secret is among them."""
        return {
            "SERVER": os.getpid(),
            "VICTIM": self._victim.pid,
            "FOLDER": str(self.folder),
            "SECRET_FILE": str(self.folder / "secret"),
            "TCP_PORT": self._listeners["TCP"].getsockname()[1],
            "UDP_PORT": self._listeners["UDP"].getsockname()[1],
            "UNIX_PATH": str(self.folder / "listener"),
            "ABSTRACT": self.mark,
            "LEAKED": self._leaked_folder,
            "MARK": self.mark,
        }

    def settle(self) -> None:
        """Take the present state of this process as normal."""
        self._own = self._own_state()
        self._memory = psutil.Process().memory_info().rss

    def harm(self) -> list[str]:
        """Return what was changed, contacted or ended from inside, one phrase each."""
        found = [f"{name} listener contacted" for name in self._contacted()]
        files = self._snapshot()
        for path in sorted({*files, *self._files}):
            if files.get(path) != self._files.get(path):
                found.append(f"{path} was {'changed' if path in files else 'removed'}")
        if files != self._files:
            self._write_canaries()
            self._files = self._snapshot()
        if self._victim.poll() is not None:
            found.append("another process was killed")
            self._victim = self._new_victim()
        elif self._process_state(self._victim.pid) != self._victim_state:
            found.append("limits or priority of another process")
            self._victim_state = self._process_state(self._victim.pid)
        own = self._own_state()
        found += [f"server: {name}" for name, value in own.items() if value != self._own[name]]
        self._own = own
        if psutil.Process().memory_info().rss > self._memory + _GROWTH_BYTES:
            found.append("server: memory")
            self._memory = psutil.Process().memory_info().rss
        size = os.fstat(self._output).st_size
        if size != self._output_bytes:
            found.append(f"{size - self._output_bytes} bytes of output")
            self._output_bytes = size
        for folder in ("/dev/shm", "/tmp"):
            for path in Path(folder).glob(self.mark + "*"):
                found.append(f"{path} was created")
                path.unlink()
        return found

    def output(self) -> str:
        """Return the start of what was written to standard output and error."""
        return os.pread(self._output, 4_096, 0).decode(errors="replace")

    def leaked(self, text: str) -> list[str]:
        """Return the names of the secrets that stand in `text`."""
        return [name for name, secret in self.secrets.items() if secret in text]

    def close(self) -> None:
        """Take everything down."""
        self._victim.kill()
        self._victim.wait()
        for listener in self._listeners.values():
            listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.with_suffix(".output").unlink()

    def _write_canaries(self) -> None:
        self.folder.chmod(0o777)
        for path in self.folder.iterdir():
            if path.name not in ("secret", "victim", "setuid-sh", "listener"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, text in (("secret", self.secrets["file"]), ("victim", "untouched")):
            path = self.folder / name
            path.unlink(missing_ok=True)
            path.write_text(text)
            path.chmod(0o666)
        shell = self.folder / "setuid-sh"
        if not shell.exists():
            shutil.copy("/bin/sh", shell)
            shell.chmod(0o6755)

    def _listen(self) -> None:
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        path = socket.socket(socket.AF_UNIX)
        path.bind(str(self.folder / "listener"))
        (self.folder / "listener").chmod(0o777)
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind("\0" + self.mark)
        self._listeners = {"TCP": tcp, "UDP": udp, "UNIX": path, "abstract": abstract}
        for listener in self._listeners.values():
            listener.setblocking(False)
            if listener.type == socket.SOCK_STREAM:
                listener.listen(16)

    def _contacted(self) -> list[str]:
        found = []
        for name, listener in self._listeners.items():
            while True:
                try:
                    if listener.type == socket.SOCK_STREAM:
                        listener.accept()[0].close()
                    else:
                        listener.recv(64)
                except BlockingIOError:
                    break
                found.append(name)
        return sorted(set(found))

    def _new_victim(self) -> subprocess.Popen[bytes]:
        root = os.geteuid() == 0
        victim = subprocess.Popen(
            ["/bin/sleep", "900"],
            env={"SECRET": self.secrets["victim"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=NOBODY if root else None,
            group=NOBODY if root else None,
            extra_groups=[] if root else None,
        )
        self._victim_state = self._process_state(victim.pid)
        return victim

    def _snapshot(self) -> dict[str, object]:
        """Return state by path; times and link counts tell what was undone meanwhile."""
        found: dict[str, object] = {}
        for path in (self.folder, *self.folder.iterdir()):
            status = path.lstat()
            key = path.name if path != self.folder else "folder"
            found[key] = (
                *(status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns),
                *(status.st_ctime_ns, tuple(os.listxattr(path, follow_symlinks=False))),
                hashlib.sha256(path.read_bytes()).digest() if stat.S_ISREG(status.st_mode) else b"",
            )
        return found

    @staticmethod
    def _process_state(pid: int) -> tuple[object, ...]:
        limits = Path(f"/proc/{pid}/limits").read_text()
        affinity = tuple(sorted(os.sched_getaffinity(pid)))
        return limits, affinity, os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid)

    def _own_state(self) -> dict[str, object]:
        return {
            "limits or priority": self._process_state(os.getpid()),
            "environment": dict(os.environ),
            "signals": tuple(signal.getsignal(number) for number in signal.valid_signals()),
            "folder": os.getcwd(),
            "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        }
