"""The processes of a run, found from outside: by their parents and their command lines."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

GONE = (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied)


def command_of(process: psutil.Process) -> str:
    """Return the command line, empty if the process is gone. Ray writes there what it runs."""
    with suppress(*GONE, FileNotFoundError, ProcessLookupError):
        text = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return text.decode(errors="replace").strip()
    return ""


def is_stopped(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def children(
    process: psutil.Process, mark: str, *, recursive: bool = False
) -> list[psutil.Process]:
    """Return the children whose command line contains `mark`."""
    with suppress(*GONE):
        return [
            child for child in process.children(recursive=recursive) if mark in command_of(child)
        ]
    return []


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one Ray, whose raylets have `mark` in their command lines."""

    mark: str

    def raylets(self) -> list[psutil.Process]:
        """Return the raylets, oldest first."""
        found = [
            process
            for process in psutil.process_iter(["name"])
            if process.info["name"] == "raylet" and self.mark in command_of(process)
        ]
        return sorted(found, key=lambda process: process.pid)

    def actors(self, kind: str) -> Iterator[psutil.Process]:
        """Yield the processes of the actors of class `kind`."""
        for raylet in self.raylets():
            yield from children(raylet, f"ray::{kind}")

    def workers(self) -> list[psutil.Process]:
        return list(self.actors("RolloutActor"))

    def ranks(self) -> list[psutil.Process]:
        return list(self.actors("LearnerActor"))


def engine_of(worker: psutil.Process) -> psutil.Process | None:
    """Return the process in which a worker's vLLM computes, also while it starts."""
    found = children(worker, "VLLM::EngineCore")
    found += [
        child
        for child in children(worker, "multiprocessing.spawn")
        if "resource_tracker" not in command_of(child)
    ]
    return found[0] if found else None


def tool_server_of(worker: psutil.Process) -> psutil.Process | None:
    found = children(worker, "envs.server.main")
    return found[0] if found else None


def fork_server_of(server: psutil.Process) -> psutil.Process | None:
    """Return the process that forks sessions: with namespaces, the inner one of two."""
    found = children(server, "envs.sandbox.zygote")
    if not found:
        return None
    inner = children(found[0], "envs.sandbox.zygote")
    with suppress(*GONE):
        # Without namespaces the children are sessions, which look the same and fork nothing.
        if len(inner) == 1 and inner[0].children():
            return inner[0]
    return found[0]


def sessions_on(server: psutil.Process) -> int:
    """Ask a tool server on a UNIX socket how many sessions it has; -1 if it does not answer."""
    words = command_of(server).split()
    if "--uds" not in words:
        return -1
    transport = httpx.HTTPTransport(uds=words[words.index("--uds") + 1])
    with httpx.Client(transport=transport, base_url="http://tools", timeout=2.0) as http:
        try:
            return int(http.get("/health").json()["sessions"])
        except (httpx.HTTPError, ValueError, KeyError):
            return -1
