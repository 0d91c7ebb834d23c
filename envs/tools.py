"""Tools as tasks offer them, answers as sessions give them, and the two Protocols between."""

import hashlib
import json
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

JsonObject = dict[str, JsonValue]
SessionPurpose = Literal["trial", "execution"]


class ToolSpec(BaseModel):
    """What the policy is told about a tool; `parameters` is a JSON schema of type object."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    parameters: JsonObject


class ToolSet(BaseModel):
    """The tools of one task with the Python source that implements them.

    `sources[i]` defines the function `functions[i]`, which implements `tools[i]` and is called with
    keyword arguments. Sources are untrusted: they run only inside a sandboxed session. Nothing that
    would give an answer away belongs here, for the sandboxed child can read all of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: tuple[ToolSpec, ...]
    sources: tuple[str, ...]
    functions: tuple[str, ...]

    @model_validator(mode="after")
    def _same_length(self) -> "ToolSet":
        if not len(self.tools) == len(self.sources) == len(self.functions):
            raise ValueError(
                f"expected one source and one function name per tool, found {len(self.tools)} "
                f"tools, {len(self.sources)} sources and {len(self.functions)} function names"
            )
        return self

    @cached_property
    def digest(self) -> str:
        """Content hash: equal tool sets are sent to a tool server once."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def find(self, name: str) -> ToolSpec | None:
        """Return the tool called `name`; where names repeat, the first."""
        return next((tool for tool in self.tools if tool.name == name), None)


class AnswerStatus(StrEnum):
    """How one tool call ended. Only `infra_error` is not the policy's business."""

    OK = "ok"
    TOOL_ERROR = "tool_error"
    TIMEOUT = "timeout"
    INFRA_ERROR = "infra_error"


class ToolCall(BaseModel):
    """A call of one tool by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: JsonObject


class ToolAnswer(BaseModel):
    """What a session answers to one call: `text` is the value (JSON, or str as is) or the error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: AnswerStatus
    text: str
    seconds: float
    """Wall seconds inside the sandboxed child."""
    cpu_seconds: float = 0.0
    truncated: bool = False
    """Whether `text` was cut at the server's reply-size limit."""


class ToolSession(Protocol):
    """Live tools of one episode phase; state lives and dies with it."""

    @property
    def id(self) -> str: ...

    @property
    def isolation(self) -> str:
        """Achieved isolation, as the server reports it (for example `namespaces`)."""
        ...

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order; one answer per call. Raises ToolServerError or DeadlineError."""
        ...

    async def close(self) -> None:
        """End the session; never raises for a session that is already gone."""
        ...


class ToolService(Protocol):
    """Where sessions come from: a tool server's client, or a replay."""

    async def open(self, tool_set: ToolSet, seed: int, purpose: SessionPurpose) -> ToolSession:
        """Open a session in its initial state. Raises ToolServerError or DeadlineError."""
        ...

    async def close(self) -> None: ...
