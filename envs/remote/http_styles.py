"""Values of arguments as text in a URL, a header or a form: OpenAPI's styles (RFC 6570).

Every character of a value that is not unreserved is percent-encoded, so that it cannot be taken for
the delimiter of a style. What the specification leaves open (lists inside of lists, objects inside
of objects) is written as JSON; a deep object goes on with further brackets.
"""

import json
from collections.abc import Iterator
from urllib.parse import quote

from pydantic import JsonValue

from envs.endpoints import WireArgument
from envs.tools import JsonObject

_RESERVED = ":/?@!$'()*,;=[]"
"""What `allowReserved` keeps: all reserved characters without `#`, `&` and `+`, which would end a
value in a query or change it.
"""
# `|` is not allowed in a URL: the table of styles in OpenAPI 3.0.4 and 3.1.1 has it encoded.
_DELIMITERS = {"form": ",", "spaceDelimited": "%20", "pipeDelimited": "%7C"}


def scalar_text(value: JsonValue) -> str:
    """Return a value as plain text; lists and objects as JSON."""
    if isinstance(value, str):
        return value
    return json_text(value)


def json_text(value: JsonValue) -> str:
    """Return a value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def is_json_type(media_type: str) -> bool:
    """Whether a media type is JSON."""
    bare = media_type.partition(";")[0].strip().lower()
    return bare.endswith(("/json", "+json")) or "*" in bare


def path_text(wire: WireArgument, value: JsonValue) -> str:
    """Return the text of a path parameter, encoded."""
    if wire.media_type:
        return _quoted(_typed_text(wire, value))
    style, explode = wire.style or "simple", wire.explode is True
    if style == "simple":
        return ",".join(_parts(value, explode=explode))
    if style == "label":
        return "." + ("." if explode else ",").join(_parts(value, explode=explode))
    name = _quoted(wire.name)
    if isinstance(value, list) and explode:
        return "".join(f";{name}={_quoted(scalar_text(item))}" for item in value)
    if isinstance(value, dict) and explode:
        return "".join(f";{part}" for part in _parts(value, explode=True))
    text = ",".join(_parts(value, explode=False))
    return f";{name}={text}" if text else f";{name}"


def query_pairs(wire: WireArgument, value: JsonValue) -> Iterator[str]:
    """Yield the pairs `name=value` of a query parameter or a form's field, encoded.

    There is none for null, an empty list and an empty object: as for an argument that is not given.
    """
    name, safe = _name(wire.name), _RESERVED if wire.allow_reserved else ""
    if value is None:
        return
    if wire.media_type:
        yield f"{name}={_quoted(_typed_text(wire, value), safe)}"
        return
    style = wire.style or "form"
    explode = style == "form" if wire.explode is None else wire.explode
    if style == "deepObject" and isinstance(value, dict | list):
        yield from _deep_pairs(name, value, safe)
    elif isinstance(value, list):
        texts = [_quoted(scalar_text(item), safe) for item in value if item is not None]
        if explode or style == "deepObject":
            yield from (f"{name}={text}" for text in texts)
        elif texts:
            yield f"{name}={_DELIMITERS[style].join(texts)}"
    elif isinstance(value, dict):
        given: JsonObject = {key: item for key, item in value.items() if item is not None}
        if explode:
            yield from (
                f"{_name(key)}={_quoted(scalar_text(item), safe)}" for key, item in given.items()
            )
        elif given:
            yield f"{name}={_DELIMITERS[style].join(_parts(given, explode=False, safe=safe))}"
    else:
        yield f"{name}={_quoted(scalar_text(value), safe)}"


def field_pairs(wire: WireArgument, value: JsonValue) -> Iterator[str]:
    """Yield the pairs of one field of an urlencoded form, encoded.

    Without a style in the document, a list repeats the name, and an object is JSON.
    """
    if wire.style or wire.media_type:
        yield from query_pairs(wire, value)
        return
    for item in value if isinstance(value, list) else [value]:
        if item is not None:
            yield f"{_name(wire.name)}={_quoted(scalar_text(item))}"


def header_text(wire: WireArgument, value: JsonValue) -> str:
    """Return the text of a header parameter. Raises ValueError if no header may hold it."""
    if wire.media_type:
        text = _typed_text(wire, value)
    else:
        text = ",".join(_parts(value, explode=wire.explode is True, encoded=False))
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"argument {wire.name!r}: expected printable ASCII, found {text!r}")
    return text.strip()


def cookie_pairs(wire: WireArgument, value: JsonValue) -> Iterator[str]:
    """Yield the pairs `name=value` of a cookie parameter, encoded."""
    yield from query_pairs(wire.model_copy(update={"style": "form"}), value)


def _deep_pairs(name: str, value: JsonValue, safe: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _deep_pairs(f"{name}%5B{_quoted(key)}%5D", item, safe)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            inner = f"{name}%5B{index}%5D" if isinstance(item, dict | list) else name
            yield from _deep_pairs(inner, item, safe)
    elif value is not None:
        yield f"{name}={_quoted(scalar_text(value), safe)}"


def _parts(value: JsonValue, *, explode: bool, safe: str = "", encoded: bool = True) -> list[str]:
    """Return the parts of a value that a style joins: items, or names and values by turns."""

    def text(part: JsonValue) -> str:
        return _quoted(scalar_text(part), safe) if encoded else scalar_text(part)

    if isinstance(value, list):
        return [text(item) for item in value if item is not None]
    if not isinstance(value, dict):
        return [text(value)]
    given: JsonObject = {key: item for key, item in value.items() if item is not None}
    if explode:
        return [f"{text(key)}={text(item)}" for key, item in given.items()]
    return [part for key, item in given.items() for part in (text(key), text(item))]


def _typed_text(wire: WireArgument, value: JsonValue) -> str:
    return json_text(value) if is_json_type(wire.media_type) else scalar_text(value)


def _quoted(text: str, safe: str = "") -> str:
    return quote(text, safe=safe)


def _name(text: str) -> str:
    return quote(text, safe="$@:")
