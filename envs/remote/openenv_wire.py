"""OpenEnv's messages, as its clients send and read them (openenv 0.10, openenv-core 0.3).

The shapes are OpenEnv's; its package is not needed, for it brings a web interface along.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from envs.tools import JsonObject, ToolSpec

Phase = Literal["trial", "execution"]
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
    """What `reset` may be told; keys it does not know are ignored, as OpenEnv's servers do."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Chooses the task, where `task_id` does not, and seeds the tools: same seed, same episode."""
    episode_id: str | None = Field(default=None, max_length=255)
    task_id: str | None = Field(default=None, max_length=255)
    mode: Mode = "direct"
    """`trial` starts with a trial phase, whose effects `begin_execution` throws away."""


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
    """End the trial phase: tools return to their initial state."""

    type: Literal["begin_execution"]


class AnswerAction(_Action):
    """Give the final answer; ends the episode with its reward."""

    type: Literal["answer"]
    text: str


Action = Annotated[
    ListToolsAction | CallToolAction | BeginExecutionAction | AnswerAction,
    Field(discriminator="type"),
]


class ToolOffer(_Strict):
    """A tool in OpenEnv's words."""

    name: str
    description: str
    input_schema: JsonObject

    @classmethod
    def of(cls, tool: ToolSpec) -> "ToolOffer":
        """Return the offer of `tool`."""
        return cls(name=tool.name, description=tool.description, input_schema=tool.parameters)


class ToolFault(_Strict):
    """Why a call has no result."""

    error_type: ToolErrorType
    message: str


class TaskObservation(_Strict):
    """What `reset`, `begin_execution` and `answer` return."""

    task_id: str
    phase: Phase
    question: str
    available_tools: tuple[ToolOffer, ...]
    """Not called `tools`: OpenEnv's client takes any observation with that key for a listing."""
    metadata: JsonObject = {}


class ListToolsObservation(_Strict):
    tools: tuple[ToolOffer, ...]
    metadata: JsonObject = {}


class CallToolObservation(_Strict):
    """Either a result or an error; both are for the policy to read."""

    tool_name: str
    result: JsonValue = None
    error: ToolFault | None = None
    metadata: JsonObject = {}


Observation = TaskObservation | CallToolObservation | ListToolsObservation


class StepResult(_Strict):
    """An observation with its reward, which only an answer has."""

    observation: Observation
    reward: float | None = None
    done: bool = False
    metadata: JsonObject | None = None


class EpisodeState(_Strict):
    episode_id: str | None
    step_count: int
    task_id: str
    phase: Phase
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


def first_fault(error: ValidationError) -> str:
    """Return where and what the first problem of a message is."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "message"
    return f"{where}: {first['msg']}"
