"""ToolHop's file format: a JSON list of questions, validated field by field."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictInt, StrictStr, ValidationError

from envs.errors import DataFileError, MissingError

NonEmpty = Annotated[StrictStr, Field(min_length=1)]


class ToolHopParameters(BaseModel):
    """JSON schema of a tool's arguments; other keys than these three are preserved."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: Literal["object"]
    properties: dict[str, JsonValue]
    required: tuple[StrictStr, ...] = ()


class ToolHopTool(BaseModel):
    """A tool as the policy sees it."""

    model_config = ConfigDict(frozen=True)

    name: NonEmpty
    description: StrictStr
    parameters: ToolHopParameters


class ToolHopQuestion(BaseModel):
    """One question; `tools` and `sub_task` are keyed by sub-question, in no useful order.

    `functions` holds one Python source per tool, in the order in which the hops are solved: that is
    not the order of `tools`. Fields of the file that nothing here uses are ignored.
    """

    model_config = ConfigDict(frozen=True)

    id: StrictInt | NonEmpty
    question: NonEmpty
    answer: NonEmpty
    sub_task: Annotated[dict[str, StrictStr], Field(min_length=1)]
    tools: Annotated[dict[str, ToolHopTool], Field(min_length=1)]
    functions: tuple[StrictStr, ...]
    domain: StrictStr
    answer_type: StrictStr


def read_questions(path: Path) -> tuple[ToolHopQuestion, ...]:
    """Read every question of `path`, in file order.

    Raises MissingError if the file does not exist, and DataFileError for invalid JSON (with its
    line) or a missing or wrong field (with the question's index, its id and the field).
    """
    if not path.is_file():
        raise MissingError(
            f"expected a file in ToolHop's format, found none at {path}: set env.path to "
            "ToolHop.json (data set bytedance-research/ToolHop on the Hugging Face hub), or leave "
            "it empty for the tasks shipped with the project"
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataFileError(
            f"{path}, line {error.lineno}, column {error.colno}: invalid JSON "
            f"({error.msg}); fetch the file again"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataFileError(
            f"{path}: expected JSON text in UTF-8, found {error}; fetch the file again"
        ) from error
    if not isinstance(entries, list) or not entries:
        raise DataFileError(
            f"{path}: expected a non-empty JSON list of questions, found {_kind(entries)}"
        )
    questions = tuple(_question(path, index, entry) for index, entry in enumerate(entries))
    _refuse_repeated_ids(path, questions)
    return questions


def _question(path: Path, index: int, entry: object) -> ToolHopQuestion:
    identity = entry.get("id", "missing") if isinstance(entry, dict) else "missing"
    where = f"{path}, task {index} (id {identity})"
    if not isinstance(entry, dict):
        raise DataFileError(f"{where}: expected a JSON object, found {_kind(entry)}")
    try:
        question = ToolHopQuestion.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        found = "no such field" if first["type"] == "missing" else repr(first["input"])[:80]
        raise DataFileError(
            f"{where}, field `{field}`: {first['msg']}, found {found}; "
            "compare with the file's original"
        ) from error
    if len(question.functions) != len(question.tools):
        raise DataFileError(
            f"{where}, field `functions`: expected one source per tool, found "
            f"{len(question.functions)} sources for {len(question.tools)} tools; "
            "compare with the file's original"
        )
    return question


def _refuse_repeated_ids(path: Path, questions: tuple[ToolHopQuestion, ...]) -> None:
    first_index: dict[str, int] = {}
    for index, question in enumerate(questions):
        earlier = first_index.setdefault(str(question.id), index)
        if earlier != index:
            raise DataFileError(
                f"{path}, task {index} (id {question.id}), field `id`: expected a unique id, "
                f"found that of task {earlier}; split and ledger depend on the id, so rename one"
            )


def _kind(entry: object) -> str:
    if isinstance(entry, (list, dict)) and not entry:
        return f"an empty {type(entry).__name__}"
    return f"a {type(entry).__name__}"
