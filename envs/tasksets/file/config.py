"""The config section of the user's own tasks: which file, and how much of it is held out."""

from pydantic import Field

from envs.config import EnvConfig


class FileEnvConfig(EnvConfig):
    """`[env]` with `name = "file"`: your own tasks, with tools in Python or behind OpenAPI, MCP or
    OpenEnv.
    """

    name: str = "file"
    """Your own tasks, with tools in Python or behind OpenAPI, MCP or OpenEnv."""
    path: str = ""
    """JSONL file, or a folder with `tasks.jsonl`; empty for the dozen tasks that ship with the
    project.
    """
    heldout_percent: int = Field(default=20, ge=0, le=100)
    """Share of the tasks that name no split, by a hash of their id, that form the held-out split.
    """
