"""Configuration section of an OpenAI-compatible chat endpoint that serves as the teacher."""

from typing import Literal

from pydantic import Field, JsonValue

from envs.config import Section

ToolFormat = Literal["prompt", "native"]
Thinking = Literal["drop", "keep"]


class EndpointConfig(Section):
    """`[collect.endpoint]`: the teacher's address, the format of requests, and limits on cost.

    The section is written into the run directory, so nothing in it may be a secret.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of the endpoint, without `/chat/completions`. The default is that of a local vLLM
    server.
    """
    model: str = ""
    """Model name as the endpoint lists it. Episodes record it as their `source`."""
    check_model: bool = True
    """Whether a `model` is refused that the endpoint's list of models lacks. `false` only warns,
    for endpoints that answer to names which they do not list.
    """
    key_variable: str = ""
    """Name of the environment variable that holds the API key. Empty, the default, sends no key."""
    tool_format: ToolFormat = "prompt"
    """Format of tool calls. `prompt`: calls are text in the student's own format, which works with
    every endpoint; `native`: the endpoint's `tools` parameter is used, and its calls are rewritten
    into the student's format.
    """
    thinking: Thinking = "drop"
    """What happens to the teacher's reasoning. `drop`, the default, removes it; `keep` stores it in
    the turn as a <think> block, so that the student learns it too.
    """
    max_tokens: int = Field(default=2048, gt=0)
    """Maximum length of one reply in the endpoint's own tokens, its reasoning included. Raise it if
    a reasoning model uses all of it before it answers.
    """
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Additional fields of every request, for example `{reasoning_effort = "low"}`."""
    omit: tuple[str, ...] = ()
    """Request fields that are not sent because this endpoint rejects them, for example `seed`."""
    attempts: int = Field(default=6, ge=1)
    """Maximum number of attempts of one request. An attempt is repeated after HTTP status 408, 425,
    429 or a temporary 5xx, a lost connection, a time-out, or an unreadable reply.
    """
    episode_attempts: int = Field(default=3, ge=1)
    """Maximum number of attempts of one episode that failed because of the endpoint or a tool. It
    replaces `rollouts.max_attempts`, because every attempt here costs money.
    """
    attempt_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of one attempt in seconds, from sending the request to the last byte received."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Deadline of one request in seconds, including all its attempts and the waits between them."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Wait before the second attempt, in seconds, with a random part. It doubles with every further
    attempt; a longer wait that the endpoint specifies (`Retry-After`) takes its place.
    """
    max_requests: int = Field(default=0, ge=0)
    """Maximum number of attempts of all requests together, counted over the whole collection. 0,
    the default, is no limit.
    """
    max_total_tokens: int = Field(default=0, ge=0)
    """Maximum number of tokens, prompts and replies together, over the whole collection. Requests
    in progress at the limit still finish. 0, the default, is no limit.
    """
