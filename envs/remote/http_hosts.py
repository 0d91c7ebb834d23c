"""Which hosts an HTTP endpoint may contact: names on a list, and the addresses behind them."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

import httpx

from envs.errors import ConfigError, InfraError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOCAL_NAMES = frozenset({"localhost"})


class RefusedHost(Exception):
    """A request, or a redirect, to a host that is not on the allow-list."""


class HostGuard:
    """Checks URLs against an allow-list and resolves each host once.

    An entry is `host:port`, or `host` for ports 80 and 443; an IPv6 address is in brackets. A name
    with an address that is not public (private, loopback, link-local, ...) is refused unless that
    address is listed too, or the name is `localhost` and is listed. Connections go to the resolved
    address, so that a later change of the name has no effect.
    """

    def __init__(self, allowed_hosts: Sequence[str]) -> None:
        """Parse the list. Raises ConfigError for an entry that is not a host."""
        self._allowed = frozenset(
            pair for entry in allowed_hosts for pair in _host_and_ports(entry)
        )
        self._hosts = frozenset(host for host, _ in self._allowed)
        self._addresses: dict[tuple[str, int], str] = {}

    async def address(self, url: httpx.URL) -> str:
        """Return the address to connect to for `url`. Raises RefusedHost, InfraError."""
        port = url.port or _DEFAULT_PORTS.get(url.scheme, 0)
        host = url.host.lower()
        if (host, port) not in self._allowed:
            raise RefusedHost(f"{url.scheme}://{host}:{port} is not among the allowed hosts")
        if (host, port) not in self._addresses:
            self._addresses[host, port] = await self._resolve(host, port)
        return self._addresses[host, port]

    async def _resolve(self, host: str, port: int) -> str:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise InfraError(f"the name {host} cannot be resolved: {error}") from error
        for *_, place in found:
            address = ipaddress.ip_address(str(place[0]).partition("%")[0])
            explicit = host in _LOCAL_NAMES or str(address) in self._hosts
            if explicit or (address.is_global and not address.is_multicast):
                return str(place[0])
        raise RefusedHost(
            f"{host} resolves to {found[0][4][0]}, which is not a public address; "
            "add that address to the allowed hosts if this is intended"
        )


def _host_and_ports(entry: str) -> list[tuple[str, int]]:
    try:
        url = httpx.URL(f"//{entry}")
        host, port = url.host.lower(), url.port
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"allowed_hosts: expected `host` or `host:port`, found {entry!r}") from (
            error
        )
    if not host or url.userinfo or url.path not in ("", "/"):
        raise ConfigError(f"allowed_hosts: expected `host` or `host:port`, found {entry!r}")
    return [(host, number) for number in ((port,) if port else _DEFAULT_PORTS.values())]
