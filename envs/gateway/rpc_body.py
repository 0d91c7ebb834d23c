"""Messages of the gateways' clients, before the protocols read them: small, and with known keys."""

from pydantic import JsonValue

from envs.server.shapes import check_keys, read_json

MOST_VALUES = 16_384
"""Values in one message, that is in the arguments of one call."""
_MOST_KEYS = 64
_QUIET_BYTES = 16_384
"""Longest message that calls no tool."""
_RPC_KEYS = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})


class NoJson(ValueError):
    """The message is not JSON, or has too many values to be decoded."""


def read_message(text: str | bytes) -> JsonValue:
    """Return a message as JSON.

    Raises NoJson, or ValueError for one with more values, or keys, than any client sends.
    """
    try:
        message = read_json(text, MOST_VALUES)
    except ValueError as error:
        raise NoJson(str(error)) from error
    if isinstance(message, dict):
        for where, part in (("message", message), ("data", message.get("data"))):
            if isinstance(part, dict) and len(part) > _MOST_KEYS:
                raise ValueError(f"{where}: expected at most {_MOST_KEYS} keys, found {len(part)}")
    return message


def read_rpc(body: bytes) -> JsonValue:
    """Return a JSON-RPC message. Raises NoJson, or ValueError for one that no client sends."""
    message = read_message(body)
    check_keys(message, _RPC_KEYS, "")
    calls = isinstance(message, dict) and message.get("method") == "tools/call"
    if len(body) > _QUIET_BYTES and not calls:
        raise ValueError(
            f"expected at most {_QUIET_BYTES} bytes in a message other than tools/call, found "
            f"{len(body)}"
        )
    return message
