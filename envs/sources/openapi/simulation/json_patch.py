"""Changes of a stored value: JSON Merge Patch (RFC 7396) and JSON Patch (RFC 6902); part of a
simulated API's source.
"""

from typing import Any


def merge_patched(target: Any, patch: Any) -> Any:
    """Return `target` with the fields of `patch`; null removes a field, at every level."""
    if not isinstance(patch, dict):
        return patch
    changed = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            changed.pop(name, None)
        else:
            changed[name] = merge_patched(changed.get(name), value)
    return changed


def json_patched(target: Any, steps: list) -> Any:
    """Apply `add`, `remove`, `replace` and `test` to `target`, in order. Raises ValueError."""
    for step in steps:
        kind, path = step.get("op"), step.get("path")
        if kind not in ("add", "remove", "replace", "test") or not isinstance(path, str):
            raise ValueError(f"a step that cannot be applied: {step}")
        if not path:
            raise ValueError("expected a path below the item")
        parts = [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]
        place = target
        for part in parts[:-1]:
            place = _below(place, part)
        _apply(kind, place, parts[-1], step.get("value"))
    return target


def _apply(kind: str, place: Any, key: str, value: Any) -> None:
    if isinstance(place, list) and kind == "add":
        place.insert(len(place) if key == "-" else _index(place, key, len(place)), value)
    elif isinstance(place, dict) and kind == "add":
        place[key] = value
    elif kind == "test" and _below(place, key) != value:
        raise ValueError(f"test failed at {key}")
    elif kind == "remove":
        _below(place, key)
        place.pop(_place(place, key))
    elif kind == "replace":
        _below(place, key)
        place[_place(place, key)] = value


def _place(place: Any, key: str) -> Any:
    return _index(place, key, len(place) - 1) if isinstance(place, list) else key


def _below(place: Any, key: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, len(place) - 1)]
    if not isinstance(place, dict) or key not in place:
        raise ValueError(f"nothing at {key}")
    return place[key]


def _index(place: list, key: str, last: int) -> int:
    if not key.isdecimal() or int(key) > last:
        raise ValueError(f"no index {key} in a list of {len(place)}")
    return int(key)
