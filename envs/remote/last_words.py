"""What a server said last: the end of its error output, fit to be shown in an error.

Control characters and escape sequences are left out, and so are secrets: the values that the server
was given, and texts that look like a password or a token.
"""

import re
from collections.abc import Mapping

_KEPT_BYTES = 16_384
_LINES = 8
_LINE_CHARACTERS = 300
_SHORTEST_SECRET = 6
"""Values below this length are no secrets: they are numbers, switches and words of a text."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")
_SECRETS = re.compile(
    r"(?i)((?:\bauthorization|[\w-]*(?:token|secret|passw(?:or)?d|api[_-]?key))[\"']?\s*[=:]\s*[\"']?"
    r"(?:(?:bearer|basic)\s+)?|\bbearer\s+(?=\S{8})|://[^/\s:@]*:)([^\s\"',;@]+)"
)


class LastWords:
    """Collects the error output of one server; memory is bounded.

    `secrets` maps the names of values that the server was given to these values.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._hidden = sorted(
            ((value, name) for name, value in secrets.items() if len(value) >= _SHORTEST_SECRET),
            key=lambda pair: len(pair[0]),
            reverse=True,
        )
        self._kept = bytearray()

    def add(self, part: bytes) -> None:
        """Take the next bytes of the output."""
        self._kept += part
        if len(self._kept) > 2 * _KEPT_BYTES:
            del self._kept[:-_KEPT_BYTES]

    def say(self, line: str) -> None:
        """Take a complete line."""
        self.add(line.encode("utf-8", "replace") + b"\n")

    def text(self) -> str:
        """Return the last lines, joined by ` | `; empty if nothing was said."""
        said = bytes(self._kept[-_KEPT_BYTES:]).decode("utf-8", "replace")
        for value, name in self._hidden:
            said = said.replace(value, f"[{name}]")
        said = _ESCAPES.sub("", said).replace("\r", "\n")
        lines = [_printable(line).strip() for line in said.split("\n")]
        last = [_short(_SECRETS.sub(r"\1[hidden]", line)) for line in lines if line][-_LINES:]
        return " | ".join(last)

    def after(self, message: str) -> str:
        """Return `message`, followed by what the server said last."""
        said = self.text()
        return f"{message}; it said last: {said}" if said else message


def _short(line: str) -> str:
    return line if len(line) <= _LINE_CHARACTERS else line[:_LINE_CHARACTERS] + "..."


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else " " for character in line)
