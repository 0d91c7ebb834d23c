"""The file format of a user's own tasks: one JSON object per line, validated field by field."""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from envs.endpoints import INFRA_STATUSES
from envs.errors import DataFileError, MissingError
from envs.sources.openapi.options import GivenCredential, RealApi
from envs.tasks import Split
from envs.tasksets.file.scorer_rows import ScorerRow, UserRow

NonEmpty = Annotated[StrictStr, Field(min_length=1)]
_SHOWN = 80
_REAL_KEYS = (
    *("allowed_hosts", "token_variable", "token_prefix", "credentials"),
    *("trial_operations", "infra_statuses"),
)


class _Row(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class _Source(_Row):
    """What every source of tools may say."""

    include: tuple[NonEmpty, ...] | None = None
    """Names of the only tools to take, with `*` for any text."""
    exclude: tuple[NonEmpty, ...] = ()
    """Names of tools to leave out, with `*` for any text."""


class _PythonSource(_Source):
    files: tuple[NonEmpty, ...] = ()
    """Further files and folders beside the source that it may read."""


class PythonTools(_PythonSource):
    """`{"python": "bank.py", "class": "Bank"}`: the public methods of a class."""

    python: NonEmpty
    class_name: NonEmpty | None = Field(default=None, alias="class")
    arguments: dict[str, JsonValue] = {}
    """Arguments of the constructor: the initial state of this task."""


class FunctionTools(_PythonSource):
    """`{"functions": "shop.py"}`: the public functions of a module."""

    functions: NonEmpty


class OpenApiTools(_Source):
    """`{"openapi": "api.json"}`: a simulation of the API, or with `base_url` the real API."""

    openapi: NonEmpty
    operations: tuple[NonEmpty, ...] | None = None
    """Operations by `operationId` or as `GET /path`; None for all that can be served."""
    fixtures: NonEmpty | None = None
    """Of a simulation: a JSON file with its state at the start, a value for each path."""
    seed: int = 0
    """Of a simulation: what is not in fixtures or examples is sampled with it."""
    base_url: NonEmpty | None = None
    """Of the real API; the keys below it are those of `RealApi`."""
    allowed_hosts: tuple[NonEmpty, ...] = ()
    token_variable: str = ""
    token_prefix: str | None = None
    credentials: dict[str, GivenCredential] = {}
    trial_operations: tuple[NonEmpty, ...] = ()
    infra_statuses: tuple[StrictInt, ...] = INFRA_STATUSES

    @model_validator(mode="after")
    def _one_world(self) -> "OpenApiTools":
        foreign = ("fixtures", "seed") if self.base_url else _REAL_KEYS
        named = [key for key in foreign if key in self.model_fields_set]
        if named and self.base_url:
            raise ValueError(
                f"expected no `{named[0]}` with `base_url`: the real API has its own state"
            )
        if named:
            raise ValueError(
                f"expected `base_url` with `{named[0]}`, found none: the simulation contacts no "
                "host; add `base_url`, or remove the other keys"
            )
        return self

    @property
    def real(self) -> RealApi | None:
        """The real API; None for a simulation."""
        if self.base_url is None:
            return None
        given = self.model_dump(include={"base_url", *_REAL_KEYS}, exclude_unset=True)
        return RealApi.model_validate(given)


class McpPlace(_Row):
    """An MCP server: a command that starts it, or the URL of a running one."""

    command: tuple[NonEmpty, ...] = ()
    environment: dict[str, str] = {}
    variables: tuple[NonEmpty, ...] = ()
    start: tuple[NonEmpty, ...] = ()
    url: str = ""
    transport: Literal["http", "sse"] | None = None
    token_variable: str = ""
    state: Literal["session"] | None = None

    @field_validator("url")
    @classmethod
    def _one_place(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("expected http(s)://host:port/path")
        return url


_OF_COMMANDS = ("environment", "variables", "start")


class McpServerTools(_Source):
    """`{"mcp": {"command": ["mcp-server-time"]}}` or `{"mcp": {"url": "http://..."}}`."""

    mcp: McpPlace

    @field_validator("mcp")
    @classmethod
    def _one_way(cls, place: McpPlace) -> McpPlace:
        if bool(place.command) == bool(place.url):
            raise ValueError("expected either `command` or `url`")
        foreign = ("transport", "token_variable") if place.command else _OF_COMMANDS
        if given := [key for key in foreign if getattr(place, key)]:
            kind = "command" if place.command else "url"
            raise ValueError(f"expected no `{given[0]}` with `{kind}`: it has no meaning there")
        return place


class OpenEnvPlace(_Row):
    """The URL of a running OpenEnv server."""

    url: NonEmpty
    world: bool = False
    """Whether the environment is the whole task: its reset gives the question, its rewards are for
    the scorer alone, and its end is the end of the episode.
    """
    reset: dict[str, JsonValue] = {}
    """Arguments of the reset; without `seed`, one that is derived from the task's id."""

    def seeded(self, seed: int) -> "OpenEnvPlace":
        """Return the place with this seed, unless it has one."""
        return self.model_copy(update={"reset": {"seed": seed, **self.reset}})


class OpenEnvServerTools(_Source):
    """`{"openenv": {"url": "http://host:port"}}`: the tools of an OpenEnv server."""

    openenv: OpenEnvPlace


_KINDS = ("python", "functions", "openapi", "mcp", "openenv")


def _kind(value: object) -> str | None:
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, _Row) else ()
    named = [kind for kind in _KINDS if kind in keys]
    return named[0] if len(named) == 1 else None


ToolSource = Annotated[
    Annotated[PythonTools, Tag("python")]
    | Annotated[FunctionTools, Tag("functions")]
    | Annotated[OpenApiTools, Tag("openapi")]
    | Annotated[McpServerTools, Tag("mcp")]
    | Annotated[OpenEnvServerTools, Tag("openenv")],
    Discriminator(
        _kind,
        custom_error_type="tool_source",
        custom_error_message=f"expected exactly one of the keys {', '.join(_KINDS)}",
    ),
]


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


class TaskRow(_Row):
    """One task; without `split`, a hash of the id selects the split."""

    id: NonEmpty
    question: StrictStr = ""
    """What the policy is asked. It may be missing with an OpenEnv `world`, whose first observation
    follows it.
    """
    answer: StrictStr | int | float | None = None
    """The expected answer; without one, there must be `scorers`."""
    scorer: Literal["exact", "numeric", "contains", "none"] = "exact"
    """When an answer is correct. `exact`: equal to the expected text, ignoring case, white space,
    a final full stop, and typographic forms of quotes, hyphens and accents; `numeric`: its last
    number equals the expected one within `tolerance`; `contains`: the expected text occurs in it;
    `none`: only `scorers` decide, which may use `answer`.
    """
    tolerance: float = Field(default=1e-6, ge=0)
    """Largest difference that `numeric` accepts: relative if the size of the expected number is
    above 1, else absolute.
    """
    split: Split | None = None
    tags: dict[str, str] = {}
    tools: Annotated[tuple[ToolSource, ...], BeforeValidator(_as_list), Field(min_length=1)]
    scorers: tuple[ScorerRow, ...] = ()
    """Scorers beside that of `answer`, and those of the recipe (`env.scorers`)."""
    user: UserRow | None = None
    """Who goes on after an answer."""

    @model_validator(mode="after")
    def _asks_something(self) -> "TaskRow":
        servers = [each for each in self.tools if isinstance(each, OpenEnvServerTools)]
        worlds = [each for each in servers if each.openenv.world]
        if not self.question and not worlds:
            raise ValueError("expected a `question`, found none")
        if len(worlds) > 1:
            raise ValueError(
                f"expected at most one OpenEnv environment with `world`, found {len(worlds)}: only "
                "one can give the rewards and end the episode"
            )
        return self

    @field_validator("answer", mode="before")
    @classmethod
    def _no_truth(cls, answer: object) -> object:
        if isinstance(answer, bool):
            raise ValueError("expected text or a number; write true or false as text")
        return answer


def read_rows(path: Path) -> Iterator[tuple[str, TaskRow]]:
    """Yield every task of a file with its location (`file:line`).

    Raises MissingError if the file does not exist, DataFileError for a line that is not a task.
    """
    if not path.is_file():
        raise MissingError(
            f"expected a file of tasks, one JSON object per line, found none at {path}: set "
            "env.path to it, or to a folder with `tasks.jsonl`; empty means the example tasks"
        )
    lines_of_ids: dict[str, int] = {}
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    row = _row(where, line)
                    earlier = lines_of_ids.setdefault(row.id, number)
                    if earlier != number:
                        raise DataFileError(
                            f"{where}, field `id`: expected a unique id, found that of line "
                            f"{earlier}: rename one"
                        )
                    yield where, row
        except UnicodeDecodeError as error:
            raise DataFileError(f"{path}: expected text in UTF-8, found {error}") from error
    if not lines_of_ids:
        raise DataFileError(f"{path}: expected at least one task, found an empty file")


def _row(where: str, line: str) -> TaskRow:
    read: object = None
    try:
        read = json.loads(line.rstrip())
        return TaskRow.model_validate(read)
    except json.JSONDecodeError as error:
        raise DataFileError(
            f"{where}, column {error.colno}: invalid JSON ({error.msg}): write one object per "
            "line, and line breaks in texts as \\n"
        ) from error
    except (ValidationError, RecursionError) as error:
        raise DataFileError(f"{where}{_fault(error, read)}") from error


def _field(loc: tuple[int | str, ...], row: object) -> tuple[int | str, ...]:
    """Return the field that a fault is about, without the names of kinds of tools and scorers."""
    if loc[:1] not in (("tools",), ("scorers",)):
        return loc
    given = row.get(str(loc[0])) if isinstance(row, dict) else None
    return (loc[0], *(loc[1:2] if isinstance(given, list) else ()), *loc[3:])


def _fault(error: ValidationError | RecursionError, row: object = None) -> str:
    if isinstance(error, RecursionError):
        return ": expected a task, found an object with too many nested levels"
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in _field(first["loc"], row))
    named = f", field `{place}`" if place else ""
    if first["type"] == "missing":
        return f"{named}: expected this field, found none: add it"
    if first["type"] == "extra_forbidden":
        near = get_close_matches(place, TaskRow.model_fields, 1)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        return f"{named}: unknown field: remove it or correct its name{meant}"
    return f"{named}: {first['msg']}, found {json.dumps(first['input'], default=str)[:_SHOWN]}"
