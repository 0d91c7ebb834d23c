"""What tools return, as text: JSON where it can be, equal in every run. Standard library only."""

import base64
import dataclasses
import datetime
import enum
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MOST_ITEMS = 100_000
"""Items that are read of an iterator, which may have no end."""
_MAX_DEPTH = 64
_AGAIN = "..."
"""Stands for an object inside of itself, and for what is nested too deep."""


def as_text(value: object) -> str:
    """Return a string unchanged, and other values as JSON."""
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return _not_finite(value)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(Plain().of(value), ensure_ascii=False)


def state_text(state: object) -> str:
    """Return the state of tools as sorted JSON: the attributes of objects, private ones too."""
    return json.dumps(Plain(whole=True).of(state), ensure_ascii=False, sort_keys=True)


class Plain:
    """Turns values into what JSON has. With `whole`, objects become all of their attributes, and
    iterators are not read; else they become their text, or their public attributes without one.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self._inside: set[int] = set()

    def of(self, value: object) -> object:
        """Return `value` as dicts, lists, strings, numbers, booleans and None."""
        match value:
            case None | bool():
                return value
            case enum.Enum():
                return self.of(value.value)
            case int():
                return int(value)
            case float():
                number = float(value)
                return number if math.isfinite(number) else _not_finite(number)
            case str():
                return str(value)
            case bytes() | bytearray() | memoryview():
                return _bytes_text(bytes(value))
            case datetime.date() | datetime.time():
                return value.isoformat()
        if id(value) in self._inside or len(self._inside) >= _MAX_DEPTH:
            return _AGAIN
        self._inside.add(id(value))
        try:
            return self._structure(value)
        finally:
            self._inside.discard(id(value))

    def _structure(self, value: object) -> object:
        if isinstance(value, type):
            return value.__name__
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return {name: self.of(getattr(value, name, None)) for name in names}
        if callable(dump := getattr(value, "model_dump", None)):  # pydantic
            return self.of(dump())
        if callable(listed := getattr(value, "tolist", None)):  # numpy
            return self.of(listed())
        if isinstance(value, Mapping):
            return {self._key(key): self.of(item) for key, item in value.items()}
        if isinstance(value, Set) and not hasattr(value, "mapping"):
            return sorted((self.of(item) for item in value), key=_order)
        if isinstance(value, Iterator):
            return f"<{type(value).__name__}>" if self._whole else self._items(value)
        if isinstance(value, Sequence) or (
            isinstance(value, Iterable) and not self._attributes(value)
        ):
            return self._items(value)
        return self._object(value)

    def _items(self, items: Iterable[object]) -> list[object]:
        return [self.of(item) for item in islice(items, _MOST_ITEMS)]

    def _object(self, value: object) -> object:
        attributes = self._attributes(value)
        if self._whole and attributes:
            return {name: self.of(item) for name, item in attributes.items()}
        kind = type(value)
        speaks = kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__
        if speaks or not attributes:
            return _ADDRESS.sub("", str(value))
        return {k: self.of(item) for k, item in attributes.items() if not k.startswith("_")}

    def _attributes(self, value: object) -> dict[str, object]:
        """Return the attributes of an object of a class written in Python; none for others."""
        found = dict(getattr(value, "__dict__", ()) or ())
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    found.setdefault(name, getattr(value, name))
        return {} if callable(value) else found

    def _key(self, key: object) -> str:
        plain = self.of(key)
        return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _not_finite(number: float) -> str:
    """Return a name for what JSON has no number for."""
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _bytes_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _order(value: object) -> tuple[bool, str | float]:
    is_number = isinstance(value, int | float)
    return (not is_number, value if is_number else json.dumps(value, sort_keys=True))
