"""RAY_ADDRESS: whether a Ray head answers there, found out before Ray waits for it for minutes."""

import os
import socket

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


def no_cluster(address: str, why: str) -> MissingError:
    """Return the error that RAY_ADDRESS, whose value is `address`, leads nowhere."""
    return MissingError(f"no Ray cluster at RAY_ADDRESS={address}: {why}; {_WAY_OUT}")


def check_ray_address(address: str, patience_s: float = PATIENCE_S) -> None:
    """Raise MissingError where no Ray head answers at `address`.

    Only HOST:PORT is looked at; of anything else that is no URL, Ray itself knows whether it means
    something (`auto`, `local`).
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
