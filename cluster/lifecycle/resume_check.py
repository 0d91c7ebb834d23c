"""What a run was begun with against what it goes on with."""

from collections.abc import Collection, Iterator, Mapping

from pydantic import JsonValue

from cluster.config.run_config import RunConfig
from envs.errors import ConfigError

_UNSET = "unset"


def check_same(
    what: str,
    before: RunConfig,
    now: RunConfig,
    under: Collection[str],
    *,
    but: Collection[str] = (),
    instead: str = "choose another run.name",
) -> None:
    """Raise ConfigError, which lists the differences, where `what` would go on with others."""
    found = differences(before, now, under, but)
    if found:
        raise ConfigError(
            f"{what} was begun with other settings ({'; '.join(found)}): "
            f"go on with the same ones, or {instead}"
        )


def differences(
    before: RunConfig, now: RunConfig, under: Collection[str] = (), but: Collection[str] = ()
) -> list[str]:
    """Return `section.key was X, is Y` for every key that differs.

    `under` are the sections or keys to compare, all of them where it is empty; `but` are those to
    leave out.
    """
    old, new = (dict(_leaves(config.model_dump(mode="json"))) for config in (before, now))
    return [
        f"{key} was {_said(old, key)}, is {_said(new, key)}"
        for key in {**old, **new}
        if _said(old, key) != _said(new, key)
        and (not under or _is_of(key, under))
        and not _is_of(key, but)
    ]


def _is_of(key: str, names: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _leaves(tree: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _said(leaves: Mapping[str, JsonValue], key: str) -> str:
    return repr(leaves[key]) if key in leaves else _UNSET
