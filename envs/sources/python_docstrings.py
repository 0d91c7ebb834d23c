"""Descriptions of a function and its arguments from docstrings: Google, NumPy, Sphinx, Epydoc or
plain.

`docstring_parser` reads them, in the style in which it finds most. Nothing of a docstring is lost:
what describes no argument of the function belongs to the function.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from docstring_parser import ParseError, epydoc, google, numpydoc, rest
from docstring_parser.common import (
    Docstring,
    DocstringDeprecated,
    DocstringExample,
    DocstringMeta,
    DocstringParam,
    DocstringRaises,
    DocstringReturns,
)

_OF_ARGUMENTS = r"(?:keyword |other )?(?:arg(?:ument)?s|param(?:eter)?s)"
_UNINDENTED = re.compile(
    rf"^({_OF_ARGUMENTS}):[ \t]*\n((?:[*\w]+[^\n:]*:[^\n]*(?:\n|$))+)", re.I | re.M
)
_FAULTS = (ParseError, ValueError, IndexError, KeyError, AttributeError, TypeError)
"""What the library raises for docstrings that only look like its styles."""
_HEADING = re.compile(r"(?m)^([A-Z][A-Za-z ]{1,40}):[ \t]*\n(?=[ \t]+\S)")
_MOST_CHARACTERS = 16_384
"""A longer docstring is plain text: for twice as much the library needs more than twice as long."""
_MOST_HEADINGS = 16
_WORDS = re.compile(r"\w{3,}")
_STYLE_WORDS = """
args arguments attribute attributes default except exception exceptions example examples keyword
optional other param parameter parameters params raise raises return returns rtype type yield yields
ivar var cvar
"""
_OF_STYLES = frozenset(_STYLE_WORDS.split())
"""Words with which the styles mark their parts."""
_NAME = re.compile(r"\*{0,2}(\w+)")
_KEPT_LINE = re.compile(r"\s|[-*+\u2022|>]|\d+[.)]\s|\.\.\.?\s|```")
"""How a line begins that is none of running text: a list, a table, an example, code."""


@dataclass(frozen=True, slots=True)
class Documentation:
    """The text about a function, and the texts about its arguments."""

    summary: str
    arguments: Mapping[str, str] = field(default_factory=dict)


def parse_docstring(text: str, names: Collection[str] | None = None) -> Documentation:
    """Parse a docstring whose common indentation has been removed.

    `names` are the function's arguments; None takes whatever the docstring describes.
    """
    found = _best(text) if len(text) <= _MOST_CHARACTERS else None
    if found is None:
        return Documentation(_running(text))
    arguments: dict[str, str] = {}
    between = "\n\n" if found.blank_after_short_description else "\n"
    parts = [f"{found.short_description or ''}{between}{found.long_description or ''}"]
    for meta in found.meta:
        described = list(_arguments(meta))
        known = [name for name in described if names is None or name in names]
        arguments |= dict.fromkeys(known, _running(meta.description or ""))
        if not described or len(known) < len(described):
            parts.append(_section(meta, [name for name in described if name not in known]))
    summary = "\n\n".join(part for part in map(_running, parts) if part)
    if _loses(text, found, [summary, *arguments.values()]):
        summary = _running(text)
    return Documentation(summary, arguments)


def _best(text: str) -> Docstring | None:
    """Return the docstring in the style in which most of it has a meaning; None if it is plain."""
    readings = [reading for read in _READERS if (reading := _reading(read, text)) is not None]
    best = max(readings, key=lambda reading: len(reading.meta), default=None)
    return best if best is not None and best.meta else None


def _reading(read: Callable[[str], Docstring], text: str) -> Docstring | None:
    try:
        return read(text)
    except _FAULTS:
        return None


def _google(text: str) -> Docstring:
    """Read Google's style, also where the arguments are not indented."""
    indented = _UNINDENTED.sub(
        lambda found: f"{found[1]}:\n" + re.sub(r"(?m)^(?=.)", "    ", found[2]), text
    )
    kinds = google.SectionType
    known = [
        *google.DEFAULT_SECTIONS,
        *(
            google.Section(title, "param", kinds.MULTIPLE)
            for title in ("Keyword Args", "Keyword Arguments", "Other Parameters", "Other Args")
        ),
    ]
    titles = {section.title for section in known}
    own = [title for title in dict.fromkeys(_HEADING.findall(indented)) if title not in titles]
    del own[_MOST_HEADINGS:]
    others = [google.Section(title, title, kinds.SINGULAR) for title in own]
    return google.GoogleParser([*known, *others]).parse(indented)


_READERS = (_google, numpydoc.parse, rest.parse, epydoc.parse)


def _loses(text: str, found: Docstring, told: Iterable[str]) -> bool:
    """Whether the library has passed over words of the docstring."""
    types = (
        getattr(meta, key, None) or "" for meta in found.meta for key in ("type_name", "arg_name")
    )
    said = " ".join((*told, *types, *(word for meta in found.meta for word in meta.args)))
    lost = set(_WORDS.findall(text.lower())) - set(_WORDS.findall(said.lower()))
    return not lost <= _OF_STYLES


def _arguments(meta: DocstringMeta) -> Iterator[str]:
    """Yield the arguments that a part describes; NumPy may describe several at once."""
    if not isinstance(meta, DocstringParam) or meta.args[:1] == ["attribute"]:
        return
    for name in meta.arg_name.split(","):
        if found := _NAME.match(name.strip()):
            yield found[1]


def _section(meta: DocstringMeta, names: list[str]) -> str:
    """Return a part that describes no argument of the function, with its heading."""
    said = (meta.description or "").strip()
    match meta:
        case DocstringParam():
            return f"{', '.join(names) or meta.arg_name}: {said}"
        case DocstringReturns():
            heading = "Yields" if meta.is_generator else "Returns"
            name = f"{meta.return_name} " if meta.return_name else ""
            kind = (
                f"{name}({meta.type_name})" if name and meta.type_name else meta.type_name or name
            )
            return ": ".join(part for part in (heading, kind.strip(), said) if part)
        case DocstringRaises():
            return ": ".join(
                part for part in (f"Raises {meta.type_name or ''}".strip(), said) if part
            )
        case DocstringDeprecated():
            since = f" since {meta.version}" if meta.version else ""
            return f"Deprecated{since}: {said}"
        case DocstringExample():
            shown = "\n".join(part for part in (meta.snippet, said) if part)
            return f"Example:\n{shown}"
        case _:
            heading = " ".join(meta.args[:1]).replace("_", " ").capitalize()
            return f"{heading}: {said}" if said else heading


def _running(text: str) -> str:
    """Return text with the lines of each paragraph joined; lists, tables and code stay."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        joins = lines and lines[-1] and line.strip() and not _KEPT_LINE.match(line)
        if joins and not lines[-1].startswith((">>>", "```")):
            lines[-1] = f"{lines[-1].rstrip()} {line.strip()}"
        else:
            lines.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
