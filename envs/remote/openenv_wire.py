"""OpenEnv's messages, as its clients send and read them (openenv 0.10, openenv-core 0.3).

The formats are OpenEnv's. Its package is not used, because it depends on a web interface.
"""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from envs.tools import JsonObject, SessionPurpose, ToolSpec

BOOKKEEPING = frozenset({"metadata"})
"""Fields that every action has and that mean nothing to the environment."""

Mode = Literal["direct", "trial"]
ErrorCode = Literal[
    "INVALID_JSON",
    "UNKNOWN_TYPE",
    "VALIDATION_ERROR",
    "EXECUTION_ERROR",
    "CAPACITY_REACHED",
    "SESSION_ERROR",
]
ToolErrorType = Literal[
    "execution_error", "invalid_args", "transport_error", "tool_not_found", "timeout"
]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ResetOptions(BaseModel):
    """Options of `reset`; unknown keys are ignored, as OpenEnv's servers do."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Selects the task if `task_id` is not given, and seeds the tools: equal seeds, equal episodes.
    """
    episode_id: str | None = Field(default=None, max_length=255)
    task_id: str | None = Field(default=None, max_length=255)
    mode: Mode = "direct"
    """`trial` starts with a trial phase, whose effects `begin_execution` discards."""


class _Action(_Strict):
    metadata: JsonObject = {}


class ListToolsAction(_Action):
    """Ask for the tools of the task."""

    type: Literal["list_tools"]


class CallToolAction(_Action):
    """Call a tool."""

    type: Literal["call_tool"]
    tool_name: str
    arguments: JsonObject = {}


class BeginExecutionAction(_Action):
    """End the trial phase: the tools return to their initial state."""

    type: Literal["begin_execution"]


class AnswerAction(_Action):
    """Give the final answer; ends the episode with its reward."""

    type: Literal["answer"]
    text: str


Action = Annotated[
    ListToolsAction | CallToolAction | BeginExecutionAction | AnswerAction,
    Field(discriminator="type"),
]


class ToolListing(_Strict):
    """A tool in OpenEnv's format."""

    name: str
    description: str
    input_schema: JsonObject

    @classmethod
    def of(cls, tool: ToolSpec) -> "ToolListing":
        """Return the listing of `tool`."""
        return cls(name=tool.name, description=tool.description, input_schema=tool.parameters)


class ToolFault(_Strict):
    """Reason why a call has no result."""

    error_type: ToolErrorType
    message: str


class TaskObservation(_Strict):
    """Observation that `reset`, `begin_execution` and `answer` return."""

    task_id: str
    phase: SessionPurpose
    question: str
    available_tools: tuple[ToolListing, ...]
    """Not named `tools`, because OpenEnv's client takes an observation with that key as a listing.
    """
    metadata: JsonObject = {}


class ListToolsObservation(_Strict):
    tools: tuple[ToolListing, ...]
    metadata: JsonObject = {}


class CallToolObservation(_Strict):
    """Either a result or an error; the policy reads both."""

    tool_name: str
    result: JsonValue = None
    error: ToolFault | None = None
    metadata: JsonObject = {}


Observation = TaskObservation | CallToolObservation | ListToolsObservation


class StepResult(_Strict):
    """An observation; only an answer has a reward."""

    observation: Observation
    reward: float | None = None
    done: bool = False
    metadata: JsonObject | None = None


class EpisodeState(_Strict):
    episode_id: str | None
    step_count: int
    task_id: str
    phase: SessionPurpose
    mode: Mode
    done: bool


class ResetMessage(_Strict):
    type: Literal["reset"]
    data: ResetOptions = ResetOptions()


class StepMessage(_Strict):
    type: Literal["step"]
    data: Action


class StateMessage(_Strict):
    type: Literal["state"]


class CloseMessage(_Strict):
    type: Literal["close"]


class RpcRequest(_Strict):
    """JSON-RPC 2.0."""

    jsonrpc: Literal["2.0"]
    method: str
    params: JsonObject = {}
    id: str | int | None = None


class McpMessage(_Strict):
    type: Literal["mcp"]
    data: RpcRequest


ClientMessage = Annotated[
    ResetMessage | StepMessage | StateMessage | CloseMessage | McpMessage,
    Field(discriminator="type"),
]
CLIENT_MESSAGE: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)
ACTION: TypeAdapter[Action] = TypeAdapter(Action)
OBSERVATION: TypeAdapter[Observation] = TypeAdapter(Observation)


def shown_observation(observation: JsonValue) -> str:
    """Return an observation as the policy sees it: its one text, its prompt, or all of it."""
    if not isinstance(observation, dict):
        return observation if isinstance(observation, str) else json_text(observation)
    hidden = (*BOOKKEEPING, "done", "reward")
    fields = {k: v for k, v in observation.items() if k not in hidden and v not in (None, "", [])}
    texts = [value for value in fields.values() if isinstance(value, str)]
    if len(fields) == len(texts) == 1:
        return texts[0]
    prompt = fields.get("prompt")
    return prompt if isinstance(prompt, str) else json_text(fields)


def plain_result(result: JsonValue) -> JsonValue:
    """Return the value of a tool's result, which may be wrapped as in MCP."""
    if not isinstance(result, dict) or not isinstance(result.get("content"), list):
        return result
    if result.get("data") is not None:
        return result["data"]
    content = result["content"]
    texts = [block.get("text") for block in content if isinstance(block, dict)]  # type: ignore[union-attr]
    return "\n".join(str(text) for text in texts if text is not None)


def json_text(value: JsonValue) -> str:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=False)
