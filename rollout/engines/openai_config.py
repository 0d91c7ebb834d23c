"""The config section of an OpenAI-compatible chat endpoint that plays the teacher."""

from typing import Literal

from pydantic import Field, JsonValue

from envs.config import Section

ToolFormat = Literal["prompt", "native"]
Thinking = Literal["drop", "keep"]


class EndpointConfig(Section):
    """`[collect.endpoint]`: where the teacher is, how it is asked, and what it may cost.

    Nothing here may be a secret: the section is written into the run directory.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    """What stands before `/chat/completions`."""
    model: str = ""
    """Name of the model, as the endpoint lists it; episodes record it as their source."""
    key_variable: str = ""
    """Environment variable that holds the API key; empty sends none."""
    tool_format: ToolFormat = "prompt"
    """`prompt`: tool calls are text, in the student's own format; `native`: the endpoint's `tools`
    parameter, its calls rewritten into the student's format.
    """
    thinking: Thinking = "drop"
    """What becomes of reasoning: `drop` it, or `keep` it in the turn as a <think> block."""
    max_tokens: int = Field(default=2048, gt=0)
    """Longest reply in the endpoint's own tokens, its reasoning included."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of every request, for example `{reasoning_effort = "low"}`."""
    omit: tuple[str, ...] = ()
    """Fields that this endpoint refuses and that are therefore not sent, such as `seed`."""
    attempts: int = Field(default=6, ge=1)
    """Tries of one request: again after 408, 425, 429, 5xx, a lost connection, a time-out or a
    reply that cannot be read.
    """
    episode_attempts: int = Field(default=3, ge=1)
    """Tries of one episode that the endpoint or a tool failed, in place of `rollouts.max_attempts`:
    here each is paid for.
    """
    attempt_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of one try, from sending to the last byte."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Deadline of one request with all its tries and the waits between them."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Wait before the second try; it doubles each time, unless the endpoint says how long."""
    max_requests: int = Field(default=0, ge=0)
    """Tries that may be made in all; 0 is no limit."""
    max_total_tokens: int = Field(default=0, ge=0)
    """Tokens, prompts included, that may be spent in all; what is under way at the limit still
    ends. 0 is no limit.
    """
