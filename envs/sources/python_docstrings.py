"""Descriptions of a function and its arguments from Google, NumPy or Sphinx docstrings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_SECTION = re.compile(
    r"(args|arguments|parameters|params|returns?|raises|yields?|examples?|notes?|attributes)\s*:?"
    r"\s*$",
    re.IGNORECASE,
)
_ARGUMENTS = frozenset({"args", "arguments", "parameters", "params"})
_GOOGLE = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_NUMPY = re.compile(r"(\w+)\s*(?::.*)?$")
_SPHINX = re.compile(r":param\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)")


@dataclass(frozen=True, slots=True)
class Documentation:
    """The first paragraph as one line, and one line for each described argument."""

    summary: str
    arguments: Mapping[str, str] = field(default_factory=dict)


def parse_docstring(text: str) -> Documentation:
    """Parse a docstring whose common indentation has been removed."""
    lines = text.splitlines()
    summary: list[str] = []
    for line in lines:
        if not line.strip():
            if summary:
                break
            continue
        if _SPHINX.match(line.strip()) or (summary and _header(line)):
            break
        summary.append(line.strip())
    return Documentation(" ".join(summary), {**_in_section(lines), **_sphinx(lines)})


def _header(line: str) -> str:
    """Return the lower-case name of the section that a line starts, or an empty string."""
    found = _SECTION.match(line) if line[:1].strip() else None
    return found[1].lower() if found else ""


def _in_section(lines: list[str]) -> dict[str, str]:
    """Return the argument descriptions of Google and NumPy sections.

    NumPy names are not indented and are followed by indented text. Google names are indented; text
    that is indented deeper continues the description.
    """
    found: dict[str, str] = {}
    inside, name, indent = False, "", 0
    for index, line in enumerate(lines):
        following = lines[index + 1].strip() if index + 1 < len(lines) else ""
        underlined = len(following) >= 3 and set(following) == {"-"}
        if header := _header(line):
            inside = header in _ARGUMENTS and (line.rstrip().endswith(":") or underlined)
            name, indent = "", 0
            continue
        text = line.strip()
        if not inside or not text or set(text) == {"-"}:
            continue
        depth = len(line) - len(line.lstrip())
        if depth == 0 and (numpy := _NUMPY.match(text)):
            name, indent = numpy[1], 0
            found[name] = ""
        elif depth == 0:
            inside = False
        elif (not name or depth <= indent) and (google := _GOOGLE.match(text)):
            name, indent = google[1], depth
            found[name] = google[2].strip()
        elif name:
            found[name] = f"{found[name]} {text}".strip()
    return found


def _sphinx(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        text = line.strip()
        if match := _SPHINX.match(text):
            name = match[1]
            found[name] = match[2].strip()
        elif not text or text.startswith(":"):
            name = ""
        elif name:
            found[name] = f"{found[name]} {text}".strip()
    return found
