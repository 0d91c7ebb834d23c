"""Addresses of Ray clusters: whether a head answers at RAY_ADDRESS, and which cluster is one's own.

Both are found out before Ray waits for minutes, or joins somebody else's cluster.
"""

import os
import pwd
import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil

from envs.errors import MissingError

PATIENCE_S = 10.0
"""How long a head may take to accept a connection, and then to answer, in seconds."""
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The start of every gRPC connection, with empty settings (RFC 9113, 3.4)."""
_SETTINGS = 4
"""Type of the frame with which a server answers; the fourth byte of a frame is its type."""
_WAY_OUT = (
    "give HOST:PORT of a head that runs the same Ray and Python, or unset RAY_ADDRESS to start Ray "
    "here"
)


_STARTED_LAST = "ray_current_cluster"
"""File in Ray's temporary folder with the address of the last `ray start`, whoever typed it."""
_NODE = "raylet"
_ADDRESS_OPTION = "--gcs-address="


def no_cluster(address: str, why: str) -> MissingError:
    """Return the error that RAY_ADDRESS, whose value is `address`, leads nowhere."""
    return MissingError(f"no Ray cluster at RAY_ADDRESS={address}: {why}; {_WAY_OUT}")


def check_ray_address(address: str, patience_s: float = PATIENCE_S) -> None:
    """Raise MissingError where no Ray head answers at `address`.

    Only HOST:PORT is looked at; of anything else that is no URL, Ray itself knows whether it means
    something (`local`).
    """
    scheme, is_url, _ = address.partition("://")
    if is_url and scheme in ("http", "https"):
        raise no_cluster(
            address,
            "that is the address of a dashboard, for `ray job submit --address`; the port of the "
            "head itself is usually 6379",
        )
    if is_url:
        raise no_cluster(
            address,
            f"trialrun joins a cluster as one of its nodes, which {scheme}:// is not for (Ray "
            "Client); run it on a node, or with `ray job submit`",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), patience_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                _greet(connection, address)
    except OSError as error:
        raise no_cluster(address, f"nothing answers there ({error.strerror or error})") from None


def _greet(connection: socket.socket, address: str) -> None:
    """Begin to speak gRPC, as Ray would. Raises MissingError where nobody answers in kind."""
    connection.sendall(_HTTP2_PREFACE)
    answer = b""
    try:
        while len(answer) < 4 and (received := connection.recv(64)):
            answer += received
    except TimeoutError:
        raise no_cluster(address, "something accepts connections there and says nothing") from None
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise no_cluster(address, "what answers there is no Ray head (it does not speak gRPC)")


def own_cluster() -> str:
    """Return HOST:PORT of the head of the cluster that this user has started on this machine.

    Ray's own `auto` joins whatever was started last, by whomever. Raises MissingError where there
    is none, where it is another user's, and where there are several.
    """
    owners: dict[str, set[int]] = defaultdict(set)
    for address, owner in _nodes():
        owners[address].add(owner)
    own = sorted(address for address in owners if os.getuid() in owners[address])
    if len(own) > 1 and (last := _started_last()) in own:
        own = [last]
    if len(own) == 1:
        return own[0]
    if own:
        raise MissingError(
            f"several Ray clusters of yours run on this machine ({', '.join(own)}): name one, with "
            "--address or RAY_ADDRESS=HOST:PORT"
        )
    foreign = [f"{address} ({_names(found)})" for address, found in sorted(owners.items())]
    theirs = f"; others have started {', '.join(foreign)}" if foreign else ""
    raise MissingError(
        f"no Ray cluster of yours runs on this machine{theirs}: start one with `ray start --head`, "
        "or name one, with --address or RAY_ADDRESS=HOST:PORT"
    )


def _nodes() -> Iterator[tuple[str, int]]:
    """Yield the head's address and the owner of every Ray node on this machine."""
    for process in psutil.process_iter(["cmdline", "uids"]):
        words = process.info["cmdline"] or []
        if not words or Path(words[0]).name != _NODE or process.info["uids"] is None:
            continue
        for word in words:
            if word.startswith(_ADDRESS_OPTION):
                yield word.removeprefix(_ADDRESS_OPTION), int(process.info["uids"].real)


def _started_last() -> str:
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"
    try:
        return (folder / _STARTED_LAST).read_text().strip()
    except OSError:
        return ""


def _names(owners: set[int]) -> str:
    return ", ".join(sorted(_name(owner) for owner in owners))


def _name(owner: int) -> str:
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return f"user {owner}"
