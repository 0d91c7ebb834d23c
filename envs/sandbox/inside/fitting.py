"""Arguments of a call, from JSON to what the tool's annotations say. Standard library only."""

import collections
import collections.abc
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import inspect
import pathlib
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence

_MAX_DEPTH = 32
_TEXTS: dict[object, Callable[[str], object]] = {
    datetime.datetime: datetime.datetime.fromisoformat,
    datetime.date: datetime.date.fromisoformat,
    datetime.time: datetime.time.fromisoformat,
    decimal.Decimal: decimal.Decimal,
    fractions.Fraction: fractions.Fraction,
    uuid.UUID: uuid.UUID,
    pathlib.Path: pathlib.Path,
    pathlib.PurePath: pathlib.PurePosixPath,
    complex: complex,
    bytes: str.encode,
}
"""Types that JSON carries as text."""
_LISTS: dict[object, Callable[[Sequence[object]], object]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.deque: collections.deque,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Set: frozenset,
    collections.abc.MutableSet: set,
}
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class _Plan(typing.NamedTuple):
    """How the arguments of a function are given."""

    hints: dict[str, typing.Any]
    """Annotations by name."""
    only: tuple[tuple[str, object], ...] = ()
    """Names and defaults of those that are given by position only."""
    either: tuple[tuple[str, object], ...] = ()
    """Names and defaults of those that may be given by position or name."""
    known: frozenset[str] = frozenset()
    many: str = ""
    """Name of `*many`, empty without one."""
    rest: str = ""
    """Name of `**rest`, empty without one."""


def invoked(function: Callable[..., object], arguments: Mapping[str, object]) -> object:
    """Call `function` with `arguments` as its annotations want them: members of an Enum, objects of
    dataclasses, dates, tuples, whole numbers for 1.0. The items of `*many` come as one list.

    What has no annotation, or one that says nothing about JSON, stays as it is. Raises ValueError
    or TypeError for a value that its type does not have, and what the function raises.
    """
    target = inspect.unwrap(getattr(function, "__func__", function))
    is_bound = hasattr(function, "__func__")
    if not isinstance(target, types.FunctionType | type):
        target, is_bound = type(target).__call__, True  # the object may have no hash of its own
    plan = _plan(target, is_bound)
    given = {name: _fitted(plan, name, value) for name, value in arguments.items()}
    return function(*_positional(plan, given), **given)


def _fitted(plan: _Plan, name: str, value: object) -> object:
    hint = plan.hints.get(name if name in plan.known else plan.rest)
    if hint is None:
        return value
    try:
        if name == plan.many and isinstance(value, list):
            return [_fit(hint, item, _MAX_DEPTH) for item in value]
        return _fit(hint, value, _MAX_DEPTH)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"argument {name!r}: {error}") from error


def _positional(plan: _Plan, given: dict[str, object]) -> list[object]:
    """Take from `given` what has to be given by position; return it in order."""
    many = given.pop(plan.many, ()) if plan.many else ()
    if not isinstance(many, list | tuple):
        raise TypeError(f"argument {plan.many!r}: expected a list, found {many!r}")
    before = [*plan.only, *(plan.either if many else ())]
    while before and not many and before[-1][0] not in given:
        before.pop()  # its default counts, or Python says that it is missing
    values: list[object] = []
    for name, default in before:
        if name not in given and default is inspect.Parameter.empty:
            raise TypeError(f"missing argument {name!r}")
        values.append(given.pop(name, default))
    return [*values, *many]


@functools.lru_cache(maxsize=1024)
def _plan(function: Callable[..., object], is_bound: bool) -> _Plan:
    """Return how to give arguments; `is_bound`: the first one is given already."""
    of = function.__init__ if isinstance(function, type) else function
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return _Plan({})
    kind = inspect.Parameter
    if is_bound and parameters and parameters[0].kind is not kind.VAR_POSITIONAL:
        del parameters[0]

    def those(*kinds: object) -> tuple[tuple[str, object], ...]:
        return tuple((p.name, p.default) for p in parameters if p.kind in kinds)

    rest = "".join(name for name, _ in those(kind.VAR_KEYWORD))
    return _Plan(
        hints=_hints_of(of),
        only=those(kind.POSITIONAL_ONLY),
        either=those(kind.POSITIONAL_OR_KEYWORD),
        known=frozenset(p.name for p in parameters) - {rest},
        many="".join(name for name, _ in those(kind.VAR_POSITIONAL)),
        rest=rest,
    )


def _hints_of(function: object) -> dict[str, typing.Any]:
    while wrapped := getattr(function, "__wrapped__", None):
        function = wrapped
    try:
        return typing.get_type_hints(function)
    except Exception:  # an annotation may name anything, or nothing
        return {}


def _fit(hint: typing.Any, value: object, depth: int) -> object:
    if depth == 0 or hint is typing.Any or hint is object:
        return value
    hint = getattr(hint, "__supertype__", hint)  # NewType
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _of_union(inner, value, depth)
    if origin is typing.Literal:
        return next((option for option in inner if _equal(option, value)), value)
    kind = origin or hint
    if kind in _TEXTS:
        return _TEXTS[kind](value) if isinstance(value, str) else value
    if kind is datetime.timedelta:
        return datetime.timedelta(seconds=value) if isinstance(value, int | float) else value
    if kind is int:
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if kind is float:
        return float(value) if type(value) is int else value
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(kind, value)
    if isinstance(value, list):
        return _of_list(kind, inner, value, depth)
    if isinstance(value, dict) and kind in _DICTS:
        key, item = inner if len(inner) == 2 else (None, None)
        return {_key(key, k, depth): _maybe(item, v, depth) for k, v in value.items()}
    return _of_class(kind, value, depth)


def _of_union(inner: Sequence[typing.Any], value: object, depth: int) -> object:
    if value is None:
        return None
    exact = [arm for arm in inner if isinstance(arm, type) and type(value) is arm]
    for arm in (*exact, *(arm for arm in inner if arm is not type(None))):
        try:
            found = _fit(arm, value, depth - 1)
        except (ValueError, TypeError, KeyError, ArithmeticError):
            continue
        if _is_of(arm, found):
            return found
    return value


def _is_of(arm: typing.Any, found: object) -> bool:
    """Whether `found` is of an arm of a union; True where that cannot be told."""
    plain = dict if typing.is_typeddict(arm) else typing.get_origin(arm) or arm
    try:
        return not isinstance(plain, type) or isinstance(found, plain)
    except TypeError:  # Any and protocols are classes of which nothing is an instance
        return True


def _of_list(kind: object, inner: Sequence[object], value: list[object], depth: int) -> object:
    if kind is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_maybe(inner[0], item, depth) for item in value)
        if inner and len(inner) != len(value):
            raise ValueError(f"expected {len(inner)} items, found {len(value)}")
        hints = inner or [None] * len(value)
        return tuple(_maybe(h, item, depth) for h, item in zip(hints, value, strict=True))
    if kind in _LISTS:
        item_hint = inner[0] if inner else None
        items = [_maybe(item_hint, item, depth) for item in value]
        try:
            return _LISTS[kind](items)
        except TypeError as error:
            raise ValueError(f"a set cannot hold this: {error}; use a list, or freeze it") from None
    fields = getattr(kind, "_fields", None)  # NamedTuple
    if isinstance(kind, type) and fields:
        return _of_class(kind, dict(zip(fields, value, strict=True)), depth)
    return value


def _of_class(kind: object, value: object, depth: int) -> object:
    if not isinstance(kind, type) or not isinstance(value, dict):
        return value
    if callable(validate := getattr(kind, "model_validate", None)):  # pydantic
        return validate(value)
    if typing.is_typeddict(kind):
        return _fields(kind, value, depth)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return kind(**_fields(kind, value, depth))
    return value


def _fields(kind: type, value: dict[str, object], depth: int) -> dict[str, object]:
    hints = _hints_of(kind)
    return {name: _maybe(hints.get(name), item, depth) for name, item in value.items()}


def _member(kind: type[enum.Enum], value: object) -> enum.Enum:
    for member in kind:
        if _equal(member.value, value) or (
            isinstance(member.value, tuple) and value == list(member.value)
        ):
            return member
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    raise ValueError(f"expected one of {[member.value for member in kind]}, found {value!r}")


def _maybe(hint: object, value: object, depth: int) -> object:
    return value if hint is None else _fit(hint, value, depth - 1)


def _key(hint: object, key: str, depth: int) -> object:
    if hint in (int, float):
        return hint(key)
    return _maybe(hint, key, depth)


def _equal(option: object, value: object) -> bool:
    return option == value and isinstance(option, bool) == isinstance(value, bool)
