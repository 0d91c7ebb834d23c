"""The configuration that a run directory holds, also one of an older version."""

import tomllib
from pathlib import Path

from cluster.config.run_config import RunConfig, load_config

_SINCE = "model.tool_format=hermes"
"""Before formats were chosen, every model was asked for Hermes calls, whatever its template."""


def stored_config(path: Path) -> RunConfig:
    """Return the configuration in the file `path` of a run directory.

    A key that its version did not have gets the value that the version behaved by, which is not
    always today's default. Raises as `load_config` does.
    """
    config = load_config(str(path))
    stored = tomllib.loads(path.read_text(encoding="utf-8"))
    if "tool_format" in stored.get("model", {}):
        return config
    return load_config(str(path), [_SINCE])
