"""A recipe whose paths all lie on the volume that the pods share."""

from pathlib import PurePosixPath
from typing import Any

from cluster.config.run_config import RunConfig
from envs.errors import ConfigError

MOUNT = PurePosixPath("/srv/runs")
"""Where every pod sees the volume."""
_OUTPUTS = ("run.dir", "run.models_dir", "tools.record_dir")
_INPUTS = ("model.path", "model.chat_template", "env.path")


def on_volume(config: RunConfig, known: frozenset[str]) -> tuple[RunConfig, dict[str, str]]:
    """Return the recipe with absolute paths, and the inputs that must be on the volume, by key.

    A relative path is taken from the top of the volume. `known` are names that are no paths: models
    that are built, templates that ship. Raises ConfigError for an absolute path elsewhere.
    """
    changes: dict[str, dict[str, str]] = {}
    inputs: dict[str, str] = {}
    for key in (*_OUTPUTS, *_INPUTS):
        section, _, name = key.partition(".")
        value = str(getattr(getattr(config, section), name, "") or "")
        if not value or value in known:
            continue
        path = _placed(key, value)
        changes.setdefault(section, {})[name] = path
        if key in _INPUTS:
            inputs[key] = path
    return config.model_copy(update=_updates(config, changes)), inputs


def _updates(config: RunConfig, changes: dict[str, dict[str, str]]) -> dict[str, Any]:
    return {
        section: getattr(config, section).model_copy(update=values)
        for section, values in changes.items()
    }


def _placed(key: str, value: str) -> str:
    path = PurePosixPath(value)
    if value.startswith("~") or ".." in path.parts:
        raise ConfigError(
            f"expected {key} to be a path on the volume, found {value!r}: pods have no home folder "
            f"of yours; give a path below {MOUNT}, or one relative to it"
        )
    if path.is_absolute() and not path.is_relative_to(MOUNT):
        raise ConfigError(
            f"expected {key} on the volume, which pods see at {MOUNT}, found {value!r}: copy it "
            f"there and give its path below {MOUNT}, or relative to it"
        )
    return str(MOUNT / path)
