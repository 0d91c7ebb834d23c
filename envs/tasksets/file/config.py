"""The config section of the user's own tasks: the file, and the share that is held out."""

from pydantic import Field

from envs.config import EnvConfig


class FileEnvConfig(EnvConfig):
    """`[env]` with `name = "file"`: your own tasks, with tools in Python or behind OpenAPI, MCP or
    OpenEnv.
    """

    name: str = "file"
    """Your own tasks, with tools in Python or behind OpenAPI, MCP or OpenEnv."""
    path: str = ""
    """JSONL file, or a folder with `tasks.jsonl`; empty for the dozen tasks shipped with the
    project.
    """
    heldout_percent: int = Field(default=20, ge=0, le=100)
    """Percentage of the tasks without a `split` that are held out, chosen by a hash of their id."""
