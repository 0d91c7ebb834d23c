"""How tasks name their scorers and their users: one object per scorer, validated field by field."""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StrictStr,
    Tag,
    model_validator,
)

NonEmpty = Annotated[StrictStr, Field(min_length=1)]


class _Row(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class CallRow(_Row):
    """`{"name": "withdraw", "arguments": {"amount": 5}}`."""

    name: NonEmpty
    arguments: dict[str, JsonValue] = {}


class ProbeRow(CallRow):
    """A call, and the value expected of it; a text that is not JSON may be given as it is."""

    expect: JsonValue
    within: bool = False
    """Whether the answer must only contain the expected text."""


class _ScorerRow(_Row):
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$")
    """Name of its part of the reward; by default the kind of the scorer."""
    weight: float = Field(default=1.0, ge=0)
    """Share of the reward, relative to the other scorers'; 0 only records it."""


class AnswerRow(_ScorerRow):
    """`{"answer": "numeric"}`: the task's expected `answer`, in one of the ways of `scorer`."""

    answer: Literal["exact", "numeric", "contains"]


class FunctionRow(_ScorerRow):
    """`{"function": "reward.py"}` or `{"function": "reward.py:my_score"}`: a function of yours."""

    function: NonEmpty
    arguments: dict[str, JsonValue] = {}
    """Further arguments, for example what this task expects."""
    trusted: bool = False
    """Whether it runs in the worker, with all of its rights; needs `env.trusted_scorers`."""


class GoldRow(_ScorerRow):
    """`{"gold": [CALL, ...]}`, or a list of such lists, one per message of the user."""

    gold: tuple[CallRow, ...] | tuple[tuple[CallRow, ...], ...] = Field(min_length=1)
    ignore: tuple[NonEmpty, ...] = ()
    """Paths in the state that may differ, with `*`, for example `Bank.log.*.time`."""
    probes: tuple[CallRow, ...] = ()
    """Calls whose answers are compared in place of the state."""


class ProbesRow(_ScorerRow):
    """`{"probes": [{"name": "balance", "arguments": {}, "expect": 7}]}`."""

    probes: tuple[ProbeRow, ...] = Field(min_length=1)


class PathRow(_ScorerRow):
    """`{"path": [CALL, ...], "order": "subsequence"}`; arguments that are left out may be any."""

    path: tuple[CallRow, ...] = Field(min_length=1)
    order: Literal["subsequence", "set"] = "subsequence"


class JudgeRow(_ScorerRow):
    """`{"judge": "what the answer must do"}`: a model decides; `[judge]` in the recipe names it."""

    judge: NonEmpty


class EnvironmentRow(_ScorerRow):
    """`{"environment": "sum"}`: the rewards of an OpenEnv environment that is the task's world."""

    environment: Literal["sum", "last", "max"]


_KINDS = ("environment", "answer", "function", "gold", "path", "judge", "probes")


def _kind(value: object) -> str | None:
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, _Row) else ()
    return next((kind for kind in _KINDS if kind in keys), None)


ScorerRow = Annotated[
    Annotated[AnswerRow, Tag("answer")]
    | Annotated[FunctionRow, Tag("function")]
    | Annotated[GoldRow, Tag("gold")]
    | Annotated[PathRow, Tag("path")]
    | Annotated[JudgeRow, Tag("judge")]
    | Annotated[ProbesRow, Tag("probes")]
    | Annotated[EnvironmentRow, Tag("environment")],
    Discriminator(
        _kind,
        custom_error_type="scorer",
        custom_error_message=f"expected a scorer with one of the keys {', '.join(_KINDS)}",
    ),
]


class SimulatedRow(_Row):
    """What a simulated user wants, and how often it may speak after the question."""

    instructions: NonEmpty
    messages: int = Field(default=8, ge=1, le=100)


class UserRow(_Row):
    """`{"says": [...]}`: these messages, or `{"simulated": {"instructions": ...}}`: a model."""

    says: tuple[NonEmpty, ...] = ()
    simulated: SimulatedRow | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "UserRow":
        if bool(self.says) == bool(self.simulated):
            raise ValueError("expected either `says` or `simulated`")
        return self


def kind_of(row: ScorerRow) -> str:
    """Return the kind of a scorer, which is its name by default."""
    return row.name or str(_kind(row))
