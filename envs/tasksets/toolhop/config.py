"""The config section of ToolHop: the data file, and the share that is held out."""

from pydantic import Field

from envs.config import EnvConfig


class ToolHopEnvConfig(EnvConfig):
    """`[env]` with `name = "toolhop"`: questions from a file in ToolHop's format."""

    name: str = "toolhop"
    """Questions from a file in ToolHop's format, each with its own Python tools."""
    path: str = ""
    """Data file; empty for the twelve tasks in the same format shipped with the project."""
    heldout_percent: int = Field(default=20, ge=0, le=100)
    """Percentage of the tasks that are held out, chosen by a hash of their id."""
