"""Tool instances: a name, a hidden operation, a hidden quirk and a doc that may mislead."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import get_args

from envs.tasksets.catalog.config import CatalogConfig, CatalogDoc, CatalogQuirk
from envs.tasksets.catalog.operations import OPERATIONS, Operation
from envs.tasksets.catalog.quirks import (
    SWITCH_ARGUMENT,
    SWITCH_VALUE,
    Quirk,
    sample_quirk,
    weighted,
)
from envs.tools import JsonObject, ToolSet, ToolSpec

VAGUE_DOC = "edit x"

_SOURCE = """\
{prelude}def {name}(**arguments):
    if "{argument}" not in arguments:
        raise ValueError("{missing}")
{checks}    text = str(arguments["{argument}"])
    return {expression}
"""


@dataclass(frozen=True, slots=True)
class Shares:
    """Weights of quirks and docs, in an order that does not depend on the config file's order."""

    quirks: tuple[tuple[CatalogQuirk, float], ...]
    docs: tuple[tuple[CatalogDoc, float], ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """One tool with its real behaviour and its doc."""

    name: str
    operation: Operation
    quirk: Quirk
    doc_kind: CatalogDoc
    doc: str
    mark: str = ""
    """A letter that is appended to every result; empty without marks."""

    def apply(self, text: str) -> str:
        """Return the tool's result for `text`, converted back from the tool's unit."""
        return self.operation.apply(text) + self.mark

    @property
    def spec(self) -> ToolSpec:
        """What the policy sees. The schema requires no argument, because the doc may be wrong."""
        arguments: JsonObject = {name: {"type": "string"} for name in self.quirk.documented}
        if SWITCH_ARGUMENT in arguments:
            arguments[SWITCH_ARGUMENT] = {
                "type": "string",
                "description": f"write {SWITCH_VALUE}",
            }
        return ToolSpec(
            name=self.name,
            description=self.doc,
            parameters={"type": "object", "properties": arguments},
        )

    @property
    def source(self) -> str:
        """Python source of the tool; it runs only inside a sandboxed session."""
        expression = self.quirk.converted(self.operation.expression)
        return _SOURCE.format(
            prelude=self.quirk.prelude,
            name=self.name,
            argument=self.quirk.argument,
            missing=self.quirk.missing,
            checks=self.quirk.checks,
            expression=f'{expression} + "{self.mark}"' if self.mark else expression,
        )


def shares_of(config: CatalogConfig) -> Shares:
    """Return the weights of `config`, in the order of their declaration."""
    return Shares(
        tuple((kind, config.quirks.get(kind, 0.0)) for kind in get_args(CatalogQuirk)),
        tuple((kind, config.docs.get(kind, 0.0)) for kind in get_args(CatalogDoc)),
    )


DEFAULT_SHARES = shares_of(CatalogConfig())


def sample_instance(
    name: str,
    operation: Operation,
    rng: Random,
    known: Sequence[Operation] = OPERATIONS,
    shares: Shares = DEFAULT_SHARES,
) -> Instance:
    """Sample quirk and doc of a tool; a false doc names another operation of `known`."""
    quirk = sample_quirk(shares.quirks, rng)
    match doc_kind := weighted(shares.docs, rng):
        case "vague":
            doc = VAGUE_DOC
        case "missing":
            doc = ""
        case "true":
            doc = f"{operation.name} x"
        case "false":
            others = [other for other in known if other != operation]
            doc = f"{rng.choice(others).name} x"
    return Instance(name, operation, quirk, doc_kind, doc)


def tool_set_of(instances: Sequence[Instance]) -> ToolSet:
    """Return the tool set with which a session is opened."""
    return ToolSet(
        tools=tuple(instance.spec for instance in instances),
        sources=tuple(instance.source for instance in instances),
        functions=tuple(instance.name for instance in instances),
    )
