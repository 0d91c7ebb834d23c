"""Tools as tasks offer them, answers as sessions give them, and the two Protocols between."""

import hashlib
import json
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from envs.endpoints import Endpoint

JsonObject = dict[str, JsonValue]
SessionPurpose = Literal["trial", "execution"]


class ToolSpec(BaseModel):
    """What the policy is told about a tool; `parameters` is a JSON schema of type object."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    parameters: JsonObject


class ToolSet(BaseModel):
    """The tools of one task, and one way to run them: Python code, an endpoint, or an adaptation.

    Code: `sources[i]` defines `functions[i]`, which implements `tools[i]` and is called with
    keyword arguments. Equal sources are one module; `Class.method` is a method of the one object of
    that class that a session has, made without arguments at the first call. Sources are untrusted:
    they run only inside a sandboxed session. Nothing that would give an answer away belongs here,
    for the sandboxed child can read all of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: tuple[ToolSpec, ...]
    sources: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    endpoint: Endpoint | None = None
    adaptation: "Adaptation | None" = None

    @model_validator(mode="after")
    def _one_implementation(self) -> "ToolSet":
        other_ways = [way for way in (self.endpoint, self.adaptation) if way is not None]
        if len(other_ways) + bool(self.sources or self.functions) > 1:
            raise ValueError("expected sources, an endpoint or an adaptation, found more than one")
        if not other_ways and not len(self.tools) == len(self.sources) == len(self.functions):
            raise ValueError(
                f"expected one source and one function name per tool, found {len(self.tools)} "
                f"tools, {len(self.sources)} sources and {len(self.functions)} function names"
            )
        return self

    @property
    def sandboxed(self) -> bool:
        """Whether the tools are Python code, which a tool server runs."""
        return self.endpoint is None and self.adaptation is None

    @property
    def root(self) -> "ToolSet":
        """The set that is run in the end: the base below all adaptations."""
        return self.adaptation.base.root if self.adaptation else self

    @cached_property
    def digest(self) -> str:
        """Content hash: equal tool sets are sent to a tool server once."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def find(self, name: str) -> ToolSpec | None:
        """Return the tool called `name`; where names repeat, the first."""
        return next((tool for tool in self.tools if tool.name == name), None)


class CallRule(BaseModel):
    """How a call of one adapted tool becomes a call of a tool of the base set.

    `parameters` maps names that the policy uses to names of the base tool; what it does not name
    keeps its name, and a parameter of the policy's alone, mapped to the empty name, is dropped.
    `types` maps the policy's parameter name to the JSON type the base tool expects.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    """Name in the base set; empty for a distractor, which answers `reply`."""
    parameters: dict[str, str] = {}
    types: dict[str, Literal["string", "integer", "number", "boolean"]] = {}
    reply: str = ""


class Adaptation(BaseModel):
    """A base tool set under other names, shapes and weather; `rules[i]` serves `tools[i]`.

    Faults and latency are drawn per call from the session's seed: the share `fault_rate` of calls
    answers a tool error without reaching the base, and a share `slow_rate` waits `latency_s` first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: str
    """RoTBench's name of the level, for tables (`clean`, `slight`, `medium`, `heavy`, `union`)."""
    seed: int
    base: ToolSet
    rules: tuple[CallRule, ...]
    fault_rate: float = Field(default=0.0, ge=0, le=1)
    slow_rate: float = Field(default=0.0, ge=0, le=1)
    latency_s: float = Field(default=0.0, ge=0)


ToolSet.model_rebuild()


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
        """Achieved isolation, as the server reports it: `IsolationReport.summary`."""
        ...

    @property
    def server(self) -> str:
        """Name of who runs the tools, as episodes record it: a server's name, else its address."""
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
