"""The reference of every configuration key and metric, made from docstrings and the registry.

`python -m cluster.config.reference` writes it to docs/reference.md.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from cluster.config.run_config import RecipeKeys, RunConfig, to_toml
from cluster.config.section_tree import Key, Place, places
from cluster.metrics import METRICS, POPULATIONS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"
_WIDTH = 98
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_TOML_KEY = re.compile(r"([A-Za-z0-9_-]+) = ")
_TOML_SECTION = re.compile(r"\[([A-Za-z0-9_.-]+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDoc:
    """What there is to know of one key, as text."""

    dotted: str
    kind: str
    """Type and bounds."""
    default: str
    """As TOML; empty where the recipe has to give a value."""
    doc: str
    """The docstring on one line."""
    choice: str = ""
    """Value of the discriminator with which the key exists, as `name = "file"`."""


@dataclass(frozen=True, slots=True)
class SectionDoc:
    """A section with the keys that it has itself."""

    name: str
    doc: str
    choice: str
    keys: tuple[KeyDoc, ...]

    @property
    def heading(self) -> str:
        """Return the section's header in TOML, and what selects it."""
        return f"[{self.name}]" + (f" with {self.choice}" if self.choice else "")


def section_docs() -> list[SectionDoc]:
    """Return every section of a recipe that has keys of its own, in the order of RecipeKeys."""
    found = [_section_doc(place) for place in places(RecipeKeys) if place.path]
    return [section for section in found if section.keys]


def key_docs() -> list[KeyDoc]:
    """Return every key of a recipe."""
    return [key for section in section_docs() for key in section.keys]


def matching(pattern: str) -> list[KeyDoc]:
    """Return the keys of section `pattern`, else those whose path or description contains it."""
    every, wanted = key_docs(), pattern.strip("[]").lower()
    inside = [key for key in every if f"{key.dotted}.".startswith(f"{wanted}.")]
    named = inside or [key for key in every if wanted in key.dotted.lower()]
    return named or [key for key in every if wanted in key.doc.lower()]


def reference() -> str:
    """Return the reference as Markdown."""
    lines = [_INTRODUCTION]
    for section in section_docs():
        lines += [f"\n## `{section.heading}`\n", f"{section.doc}\n", *_key_table(section)]
    return "\n".join([*lines, *_metric_tables()]) + "\n"


def _metric_tables() -> Iterator[str]:
    """Yield what metrics are taken over, and the metrics."""
    yield f"\n## Metrics\n\n{_METRICS}\n\n| over | what that is |\n|---|---|"
    for name, meaning in POPULATIONS.items():
        yield f"| {name} | {_cell(meaning)} |"
    yield f"\n{_METRIC_NOTES}\n\n| name | unit | over | averaging | meaning |"
    yield "|---|---|---|---|---|"
    for metric in METRICS.values():
        before = f" Older versions: `{metric.before}`." if metric.before else ""
        cells = (f"`{metric.name}`", metric.unit or "-", metric.over, metric.averaging)
        yield f"| {' | '.join(cells)} | {_cell(metric.meaning + before)} |"


def documented_toml(config: RunConfig) -> str:
    """Return the resolved configuration as TOML text with what each key means as a comment."""
    docs = {key.dotted: key.doc for key in key_docs() if key.choice in _choices(config)}
    lines: list[str] = []
    section = ""
    for line in to_toml(config).splitlines():
        if header := _TOML_SECTION.fullmatch(line):
            section = header[1]
        elif (key := _TOML_KEY.match(line)) and (doc := docs.get(f"{section}.{key[1]}")):
            lines += [f"# {part}" for part in textwrap.wrap(doc, _WIDTH, break_on_hyphens=False)]
        lines.append(line)
    return "\n".join(lines) + "\n"


def _choices(config: RunConfig) -> set[str]:
    """Return the discriminators' values that `config` uses, and the empty one."""
    return {f'name = "{config.env.name}"', ""}


def _section_doc(place: Place) -> SectionDoc:
    name = ".".join(place.path)
    doc = _one_line(inspect.getdoc(place.section) or "").removeprefix(f"`[{name}]`: ")
    if not doc[1:2].isupper():  # "vLLM" stays
        doc = doc[:1].upper() + doc[1:]
    keys = tuple(_key_doc(key, place.choice) for key in place.own_keys())
    return SectionDoc(name, doc, place.choice, keys)


def _key_doc(key: Key, choice: str) -> KeyDoc:
    field = key.field
    bounds = [
        f"{sign} {getattr(found, name):g}"
        for found in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(found, name, None) is not None
    ]
    kind = ", ".join([_type_text(field.annotation), *bounds])
    value = field.get_default(call_default_factory=True)
    default = "" if value is PydanticUndefined else toml_value(value)
    doc = _one_line(field.description or "")
    return KeyDoc(dotted=key.dotted, kind=kind, default=default, doc=doc, choice=choice)


def _type_text(annotation: Any) -> str:
    """Return an annotation as a reader of TOML would call it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(toml_value(value) for value in arguments)
    if origin in (Union, UnionType):
        parts = (_type_text(part) for part in arguments if part is not NoneType)
        return " or ".join(dict.fromkeys(parts))
    if origin in (tuple, list):
        inner = [part for part in arguments if part is not Ellipsis]
        return f"list of {' and '.join(dict.fromkeys(map(_type_text, inner)))}"
    if origin is dict:
        return f"table of {_type_text(arguments[1])}"
    if arguments:  # Annotated
        return _type_text(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    names: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, "value")


def toml_value(value: Any) -> str:
    """Return a value as TOML text on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(inner) for inner in value) + "]"
    return "" if value is None else tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _key_table(section: SectionDoc) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key in section.keys:
        default = f"`{key.default}`" if key.default else "none"
        name = key.dotted.rpartition(".")[2]
        yield f"| `{name}` | {_cell(key.kind)} | {default} | {_cell(key.doc)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


_INTRODUCTION = """\
# Configuration keys and metrics

This file is generated: `python -m cluster.config.reference` writes it from the docstrings of the
configuration sections and from the registry of metrics (`cluster/metrics.py`).

A recipe is a TOML file with these sections. Every key can be overridden on the command line as
`section.key=value`, for example `trialrun train catalog run.steps=3 learner.lr=1e-4`. The value is
TOML; text that is not valid TOML is taken as a string. `trialrun keys PATTERN` prints the same in a
terminal, and `trialrun train RECIPE --dry-run` prints a recipe with all keys resolved. `NAME` in a
section stands for a name that the recipe chooses."""
_METRICS = """\
What a training step records in the run directory (`metrics/`), and what the dashboard, `trialrun
plot` and the lines on the terminal show. A number of which nothing was measured is stored as null,
shown as `-` and absent from plots; it is never 0. An SFT records those metrics that apply to it."""
_METRIC_NOTES = """\
`success` and `reward` are the learning curves. To average them over steps, weight each step by its
`played_episodes`, which has no bias. An unweighted mean leans towards one half, because a step ends
with a group that varies: a success of 0.8 is then shown as 0.795 with 8 groups of 8, and as 0.763
with 2 groups of 4. Steps that an older version recorded are plotted too: the same numbers under
today's names, and those that were taken over something else in plots of their own."""

if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
