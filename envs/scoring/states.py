"""States of tools compared: where two of them differ, apart from what is to be ignored."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from pydantic import JsonValue

_SHOWN = 80
_Path = tuple[str, ...]


def first_difference(found: JsonValue, expected: JsonValue, ignore: Sequence[str]) -> str:
    """Return where `found` differs from `expected`, empty if nowhere.

    `ignore` are patterns of paths as `Bank.accounts.*.opened_at`; what is below one is left out.
    """
    place = next(_differences(found, expected, (), ignore), None)
    if place is None:
        return ""
    path, left, right = place
    return f"{'.'.join(path) or 'state'}: found {_shown(left)}, expected {_shown(right)}"


_MISSING = object()


def _differences(
    found: object, expected: object, path: _Path, ignore: Sequence[str]
) -> Iterator[tuple[_Path, object, object]]:
    dotted = ".".join(path)
    if any(fnmatchcase(dotted, pattern) for pattern in ignore):
        return
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            left, right = found.get(key, _MISSING), expected.get(key, _MISSING)
            yield from _differences(left, right, (*path, key), ignore)
    elif isinstance(found, list) and isinstance(expected, list):
        for index in range(max(len(found), len(expected))):
            left = found[index] if index < len(found) else _MISSING
            right = expected[index] if index < len(expected) else _MISSING
            yield from _differences(left, right, (*path, str(index)), ignore)
    elif found != expected or isinstance(found, bool) != isinstance(expected, bool):
        yield path, found, expected


def _shown(value: object) -> str:
    return "nothing" if value is _MISSING else repr(value)[:_SHOWN]
