"""Tools as tasks define them, their calls and answers, and the two Protocols that run them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Literal, Protocol

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from envs.endpoints import Endpoint

JsonObject = dict[str, JsonValue]
SessionPurpose = Literal["trial", "execution", "scoring"]
"""Phase of an episode that a tool session serves; also the phase of a call or a turn. `scoring` is
for sessions beside the policy's: scorers and simulated users.
"""
STATE_CALL = "trialrun:state"
"""A call by this name is answered with the session's state as JSON: one object per class, and one
per module of functions. No policy can make it: it is no tool, and turns are checked for that.
"""


REWARD_CALL = "trialrun:reward"
"""A call by this name is answered with the rewards that an environment has given, as a list."""


class ToolSpec(BaseModel):
    """Description of a tool for the policy; `parameters` is a JSON schema of type object."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    parameters: JsonObject


class LeftOut(BaseModel):
    """A tool, or an operation, that a source offers and that cannot be served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    why: str
    """One line: what was expected and what was found."""


_LATER_KEYS = frozenset({"instructions", "left_out", "parts", "setup", "modules", "files"})


class ToolSet(BaseModel):
    """The tools of one task, and one way to run them: Python code, an endpoint, an adaptation, or
    several sets as one.

    Code: `sources[i]` defines `functions[i]`, which implements `tools[i]` and is called with
    keyword arguments. Equal sources are one module; `Class.method` is a method of the one object of
    that class that a session has, created at the first call with the arguments in `setup`. Sources
    are untrusted: they run only inside a sandboxed session. The set must not contain anything that
    reveals an answer, because the sandboxed child can read all of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tools: tuple[ToolSpec, ...]
    sources: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    endpoint: Endpoint | None = None
    adaptation: "Adaptation | None" = None
    instructions: str = ""
    """What the source says about its tools as a whole; the policy reads it before them."""
    left_out: tuple[LeftOut, ...] = ()
    """What the source offers and these tools lack, for `trialrun check`; the policy never sees it.
    """
    parts: "tuple[ToolSet, ...]" = ()
    """Sets that one session has together; `tools` are theirs, in order, each name once."""
    setup: dict[str, JsonObject] = {}
    """Constructor arguments of classes, by name: the initial state of a task."""
    modules: dict[str, str] = {}
    """Sources that can be imported, by dotted name. One that equals a source is the same module."""
    files: dict[str, str] = {}
    """Read-only files beside the sources, in base64 by relative path."""

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> Mapping[str, object]:
        # Sets that do not use a key keep the digest that they had before it existed.
        found: dict[str, object] = dump(self)
        return {key: value for key, value in found.items() if value or key not in _LATER_KEYS}

    @model_validator(mode="after")
    def _one_implementation(self) -> "ToolSet":
        other_ways = [way for way in (self.endpoint, self.adaptation, self.parts) if way]
        if len(other_ways) + bool(self.sources or self.functions) > 1:
            raise ValueError(
                "expected sources, an endpoint, an adaptation or parts, found more than one"
            )
        if self.parts and self.tools != tuple(tool for part in self.parts for tool in part.tools):
            raise ValueError("expected the tools of all parts, in order, found others")
        if not other_ways and not len(self.tools) == len(self.sources) == len(self.functions):
            raise ValueError(
                f"expected one source and one function name per tool, found {len(self.tools)} "
                f"tools, {len(self.sources)} sources and {len(self.functions)} function names"
            )
        return self

    @property
    def sandboxed(self) -> bool:
        """Whether the tools are Python code, which runs on a tool server."""
        return self.endpoint is None and self.adaptation is None and not self.parts

    @property
    def root(self) -> "ToolSet":
        """The set that actually runs: the base below all adaptations."""
        return self.adaptation.base.root if self.adaptation else self

    @cached_property
    def digest(self) -> str:
        """Content hash; equal tool sets are sent to a tool server only once."""
        text = json.dumps(self.model_dump(mode="json", exclude={"left_out"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def find(self, name: str) -> ToolSpec | None:
        """Return the first tool with this name, or None."""
        return next((tool for tool in self.tools if tool.name == name), None)


class CallRule(BaseModel):
    """How a call of one adapted tool becomes a call of a tool of the base set.

    `parameters` maps the policy's parameter names to those of the base tool. Parameters that are
    not in the map keep their name; one that is mapped to the empty name is dropped. `types` maps
    the policy's parameter names to the JSON types that the base tool expects.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    """Name in the base set; empty for a distractor, which always answers `reply`."""
    parameters: dict[str, str] = {}
    types: dict[str, Literal["string", "integer", "number", "boolean"]] = {}
    reply: str = ""


class Adaptation(BaseModel):
    """A base tool set under other names and parameters, with faults; `rules[i]` serves `tools[i]`.

    Faults and latency are sampled per call from the session's seed. The share `fault_rate` of calls
    gets a tool error without reaching the base; the share `slow_rate` first waits `latency_s`
    seconds.
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
    """How one tool call ended. All except `infra_error` are observations for the policy."""

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
    """Answer to one call; `text` is the value (JSON, or a string unchanged) or the error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: AnswerStatus
    text: str
    seconds: float
    """Wall seconds that the tool took: inside the sandboxed child, with the wait for a new one if
    the tool had ended its last one.
    """
    cpu_seconds: float = 0.0
    truncated: bool = False
    """Whether `text` was cut at the server's reply-size limit."""
    done: bool = False
    """Whether the call ended the environment's own episode: no further call does anything."""
    tools: tuple[ToolSpec, ...] | None = None
    """All tools of the session from now on, where they have changed; None where they have not."""


class ToolSession(Protocol):
    """Live tools of one episode phase; their state ends with the session."""

    @property
    def id(self) -> str: ...

    @property
    def isolation(self) -> str:
        """Achieved isolation, as the server reports it: `IsolationReport.summary`."""
        ...

    @property
    def server(self) -> str:
        """Name of the server that runs the tools, as episodes record it; by default its address."""
        ...

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order; one answer per call. Raises ToolServerError or DeadlineError."""
        ...

    async def close(self) -> None:
        """End the session; does not raise if it has ended already."""
        ...


class ToolService(Protocol):
    """Opens sessions: the client of a tool server, a router, a recording, ..."""

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ToolSession:
        """Open a session in its initial state.

        `episode` is recorded with the session's traffic; empty if there is no episode. Raises
        ToolServerError or DeadlineError.
        """
        ...

    async def close(self) -> None: ...
