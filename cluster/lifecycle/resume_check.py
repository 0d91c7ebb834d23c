"""Differences between the recipe that a run was started with and the one that resumes it."""

from collections.abc import Collection, Iterator, Mapping

from pydantic import JsonValue

from cluster.config.run_config import RunConfig

_UNSET = "unset"


def differences(
    before: RunConfig, now: RunConfig, under: Collection[str] = (), but: Collection[str] = ()
) -> list[str]:
    """Return `section.key was X, is Y` for every key that differs.

    `under` are the sections or keys to compare, all of them where it is empty; `but` are those to
    leave out.
    """
    old, new = (dict(_leaves(config.model_dump(mode="json"))) for config in (before, now))
    return [
        f"{key} was {_shown(old, key)}, is {_shown(new, key)}"
        for key in {**old, **new}
        if _shown(old, key) != _shown(new, key)
        and (not under or _is_below(key, under))
        and not _is_below(key, but)
    ]


def _is_below(key: str, names: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _leaves(tree: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(leaves: Mapping[str, JsonValue], key: str) -> str:
    return repr(leaves[key]) if key in leaves else _UNSET
