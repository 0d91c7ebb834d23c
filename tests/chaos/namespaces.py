"""Machines in small: network namespaces of this one, with real addresses and their own /dev/shm.

Needs root, `ip`, `unshare` and `nsenter`. Every node is a namespace with one end of a veth pair;
the other ends meet in a bridge in a namespace of their own. To cut a node off, its end at the
bridge is taken down: packets are lost, as behind a switch that has failed, and no connection is
closed.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_NET = "10.217.43"


def why_not() -> str:
    """Return what is missing for namespaces, or an empty string."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare", "nsenter", "mount") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


@dataclass(frozen=True, slots=True)
class Node:
    """One namespace."""

    name: str
    address: str
    holder: int
    """A process that does nothing but be in the namespaces."""

    def command(self, *words: str) -> list[str]:
        """Return a command that runs `words` on this node."""
        return ["nsenter", "--target", str(self.holder), "--mount", "--net", *words]

    def pids(self) -> list[int]:
        shown = _ip("netns", "pids", self.name)
        return [int(pid) for pid in shown.split()]

    def reaches(self, other: "Node") -> bool:
        """Whether a TCP packet gets an answer, be it a refusal, within a second."""
        probe = (
            "import socket, sys\n"
            "s = socket.socket(); s.settimeout(1)\n"
            f"sys.exit(0 if s.connect_ex(('{other.address}', 9)) == 111 else 1)"
        )
        done = subprocess.run(
            self.command(sys.executable, "-c", probe),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0


@dataclass(frozen=True, slots=True)
class Network:
    """Nodes on one bridge."""

    switch: str
    nodes: tuple[Node, ...]

    def cut(self, node: Node) -> None:
        """Lose every packet from and to `node`."""
        _ip("-n", self.switch, "link", "set", f"p-{node.name}", "down")

    def heal(self, node: Node) -> None:
        _ip("-n", self.switch, "link", "set", f"p-{node.name}", "up")


@contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """Make a namespace per name, all connected."""
    switch = f"{names[0]}-sw"
    everything = [switch, *names]
    nodes: list[Node] = []
    holders: list[subprocess.Popen[bytes]] = []
    for name in everything:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    try:
        for name in everything:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(names, 1):
            port, address = f"p-{name}", f"{_NET}.{number}"
            peer = ("peer", "name", "eth0", "netns", name)
            _ip("-n", switch, "link", "add", port, "type", "veth", *peer)
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            # Programs find their own address by a route to the world, which nothing answers.
            _ip("-n", name, "route", "add", "default", "via", f"{_NET}.254")
            holders.append(_hold(name))
            nodes.append(Node(name, address, holders[-1].pid))
        yield Network(switch, tuple(nodes))
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
        for name in everything:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _hold(name: str) -> subprocess.Popen[bytes]:
    """Start the process that keeps a node's mounts; its /dev/shm is its own."""
    script = "mount -t tmpfs -o size=2g tmpfs /dev/shm && echo ready && exec sleep infinity"
    enter = ("ip", "netns", "exec", name, "unshare", "--mount", "--propagation", "private")
    holder = subprocess.Popen([*enter, "/bin/sh", "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    if holder.stdout.readline() != b"ready\n":
        holder.kill()
        raise OSError(f"the namespace {name} has no /dev/shm of its own")
    return holder


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
