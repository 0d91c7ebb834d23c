"""What there is to say of a model folder's chat template and tokenizer, for people and doctors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envs.errors import ConfigError, MissingError
from rollout.chat.template import ChatTemplate
from rollout.config import ModelConfig

Status = Literal["ok", "warn", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFinding:
    """One row of a table; `missing` means that the model cannot be used as it is."""

    name: str
    status: Status
    detail: str


_TOOLS = {
    "tool": "in the tool role",
    "called": "in the tool role, after a call that the template renders",
    "called_once": "in the tool role, after one call that the template renders",
    "user": "as user turns: the template shows no other",
}


def template_findings(folder: Path, model: ModelConfig | None = None) -> list[TemplateFinding]:
    """Return the findings on the template that `model` chooses, or else on the folder's own.

    A template that is refused is one finding, with the reason and the way out.
    """
    try:
        template = ChatTemplate.load(folder, model)
    except (ConfigError, MissingError) as error:
        return [TemplateFinding(name="chat template", status="missing", detail=str(error))]
    return list(_findings(template))


def _findings(template: ChatTemplate) -> Iterator[TemplateFinding]:
    yield _ok("chat template", "only appends; shows what it is given, once and in order")
    yield TemplateFinding(
        name="tool answers",
        status="warn" if template.tool_role == "user" else "ok",
        detail=_TOOLS[template.tool_role],
    )
    role = "has one" if template.system_role else "none: its text begins the first user turn"
    yield _ok("system role", role)
    yield _ok("thinking", thinking_of(template))
    tools = "the template can list them" if template.renders_tools else "the template lists none"
    yield _ok("tools", tools)
    yield _ok("ends of turns", ", ".join(map(template.token_text, template.stop_token_ids)))
    count = len(template.structure_tokens)
    yield _ok("control tokens", f"{count}; text of tools and tasks becomes none of them")
    lost = template.lost_signs
    yield TemplateFinding(
        name="round trip",
        status="warn" if lost else "ok",
        detail=f"{lost} become the unknown token" if lost else "text comes out as it went in",
    )
    for note in template.notes:
        yield TemplateFinding(name="note", status="ok", detail=note)


def thinking_of(template: ChatTemplate) -> str:
    """Return how a turn of the policy starts, where the template says something about thoughts."""
    if template.opens_thought:
        return "a turn starts inside of a thought"
    if "</think>" in template.generation_prompt:
        return "a turn starts behind an empty thought"
    return "left to the model"


def _ok(name: str, detail: str) -> TemplateFinding:
    return TemplateFinding(name=name, status="ok", detail=detail)
