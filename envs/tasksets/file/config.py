"""The config section of the user's own tasks: the file, and the share that is held out."""

from pydantic import Field

from envs.config import EnvConfig
from envs.tasksets.file.scorer_rows import ScorerRow


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
    scorers: tuple[ScorerRow, ...] = ()
    """Scorers of every task, beside its own; docs/environments.md lists the kinds."""
    trusted_scorers: bool = False
    """Allow scorers with `trusted = true`, which run in the workers with all of their rights."""
    scorer_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that a trusted scorer may take; others have `tools.call_timeout_s`."""
