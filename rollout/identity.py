"""Who runs an episode, and what the episode waits for: names that records and reports show."""

from dataclasses import dataclass

from rollout.config import ToolFormatName


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Worker and source that episodes record, the model's maximum sequence length and its format
    of tool calls.
    """

    worker: str
    source: str = "policy"
    """`policy`, or the name of a teacher."""
    max_model_len: int = 1024
    """Tokens."""
    tool_format: ToolFormatName = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What an episode in progress waits for."""

    episode: str
    what: str
    """`the engine`, `tools`, or `the start of its tools`."""
    since: float
    """On the monotonic clock."""
