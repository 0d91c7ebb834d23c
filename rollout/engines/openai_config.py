"""Config section of an OpenAI-compatible chat endpoint that serves as teacher."""

from typing import Literal

from pydantic import Field, JsonValue

from envs.config import Section

ToolFormat = Literal["prompt", "native"]
Thinking = Literal["drop", "keep"]


class EndpointConfig(Section):
    """`[collect.endpoint]`: address of the teacher, form of the requests, and budget.

    Nothing here may be a secret: the section is written into the run directory.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    """URL without `/chat/completions`."""
    model: str = ""
    """Name of the model in the endpoint's list; episodes record it as their source."""
    key_variable: str = ""
    """Environment variable that holds the API key; empty sends none."""
    tool_format: ToolFormat = "prompt"
    """`prompt`: tool calls are text, in the student's own format; `native`: the endpoint's `tools`
    parameter, its calls rewritten into the student's format.
    """
    thinking: Thinking = "drop"
    """What to do with reasoning: `drop` it, or `keep` it in the turn as a <think> block."""
    max_tokens: int = Field(default=2048, gt=0)
    """Longest reply in the endpoint's own tokens, its reasoning included."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of every request, for example `{reasoning_effort = "low"}`."""
    omit: tuple[str, ...] = ()
    """Request fields to leave out because this endpoint refuses them, such as `seed`."""
    attempts: int = Field(default=6, ge=1)
    """Tries of one request: again after 408, 425, 429, 5xx, a lost connection, a time-out or a
    reply that cannot be read.
    """
    episode_attempts: int = Field(default=3, ge=1)
    """Tries of one episode that fails because of the endpoint or a tool. Replaces
    `rollouts.max_attempts`, since each try costs money here.
    """
    attempt_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of one try, from sending to the last byte."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Deadline of one request, retries and waits included."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Wait before the second try; it doubles each time, unless the endpoint demands another."""
    max_requests: int = Field(default=0, ge=0)
    """Largest number of requests, retries included; 0 is no limit."""
    max_total_tokens: int = Field(default=0, ge=0)
    """Largest number of tokens, prompts included; 0 is no limit. Requests that are running when
    it is reached still complete.
    """
