"""A real S3 server, and a link to it that can be cut, slowed down and mended."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from pyarrow import fs

BUCKET = "runs"
KEYS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_START_S = 60.0
_BLOCK = 16_384


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class S3Server:
    """`moto_server` on a port of loopback; what it stores ends with its process."""

    def __init__(self, program: Path) -> None:
        self._program, self.port = program, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def files(self) -> fs.FileSystem:
        return fs.S3FileSystem(endpoint_override=self.endpoint, allow_bucket_creation=True)

    def start(self) -> None:
        """Start the server, with an empty bucket."""
        self._process = subprocess.Popen(
            [self._program, "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{self.endpoint}/moto-api/", timeout=5)
                break
            assert self._process.poll() is None and time.monotonic() < deadline
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
        self.files.create_dir(BUCKET)

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Link:
    """Passes connections on to a server; `down` cuts and refuses them, `rate` slows them down."""

    def __init__(self, port: int) -> None:
        self._target, self._over = port, threading.Event()
        self._open: set[socket.socket] = set()
        self.down, self.rate = False, 0.0
        """`rate`: bytes per second of one connection; 0 does not hold it up."""
        self.passed = 0
        """Bytes that went to the server."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection, and take no new one until `mend`."""
        self.down = True
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.down = False

    def close(self) -> None:
        self._over.set()
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                assert not self.down
                far = socket.create_connection(("127.0.0.1", self._target), timeout=30)
            except (AssertionError, OSError):
                near.close()
                continue
            self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                arguments = (source, target, source is near)
                threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK):
                if self.rate:
                    self._over.wait(len(block) / self.rate)
                target.sendall(block)
                self.passed += len(block) if counted else 0
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()
        self._open.discard(source)


@contextmanager
def open_server(program: Path) -> Iterator[S3Server]:
    """Run a server while the block lasts."""
    server = S3Server(program)
    try:
        server.start()
        yield server
    finally:
        server.kill()
