"""Tool instances: a name, a hidden operation, a hidden quirk and a doc that may mislead."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from envs.catalog.operations import OPERATIONS, Operation
from envs.tools import JsonObject, ToolSet, ToolSpec

QuirkKind = Literal["none", "key", "argument"]
DocKind = Literal["vague", "true", "false"]

DOCUMENTED_ARGUMENT = "x"
ARGUMENTS: tuple[str, ...] = ("text", "word", "item", "code")
"""What the argument may really be called where the doc is wrong about it."""
KEYS: tuple[str, ...] = ("gold", "blue", "green", "black", "white", "pink")
"""Values of the undocumented argument `key`."""
VAGUE_DOC = "edit x"

_SOURCE = """\
def {name}(**arguments):
    if "{argument}" not in arguments:
        raise ValueError("use {argument}")
{key_check}    text = str(arguments["{argument}"])
    return {expression}
"""
_KEY_CHECK = """\
    if arguments.get("key") != "{key}":
        raise ValueError("needs key={key}")
"""


@dataclass(frozen=True, slots=True)
class Quirk:
    """What the doc does not say; `value` is the key, or the argument's real name."""

    kind: QuirkKind = "none"
    value: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """One tool as it really is."""

    name: str
    operation: Operation
    quirk: Quirk
    doc_kind: DocKind
    doc: str

    @property
    def spec(self) -> ToolSpec:
        """What the policy is told; the schema requires nothing, for the doc may be wrong."""
        argument: JsonObject = {"type": "string"}
        return ToolSpec(
            name=self.name,
            description=self.doc,
            parameters={"type": "object", "properties": {DOCUMENTED_ARGUMENT: argument}},
        )

    @property
    def source(self) -> str:
        """Python source of the tool; runs only inside a sandboxed session."""
        argument = self.quirk.value if self.quirk.kind == "argument" else DOCUMENTED_ARGUMENT
        check = _KEY_CHECK.format(key=self.quirk.value) if self.quirk.kind == "key" else ""
        return _SOURCE.format(
            name=self.name,
            argument=argument,
            key_check=check,
            expression=self.operation.expression,
        )


def draw_quirk(rng: Random) -> Quirk:
    """Draw none (50 %), an undocumented key (25 %) or a wrongly documented argument (25 %)."""
    share = rng.random()
    if share < 0.5:
        return Quirk()
    if share < 0.75:
        return Quirk("key", rng.choice(KEYS))
    return Quirk("argument", rng.choice(ARGUMENTS))


def draw_instance(
    name: str, operation: Operation, rng: Random, known: Sequence[Operation] = OPERATIONS
) -> Instance:
    """Draw quirk and doc of a tool: vague 50 %, true 20 %, false 30 % (another of `known`)."""
    quirk = draw_quirk(rng)
    share = rng.random()
    if share < 0.5:
        return Instance(name, operation, quirk, "vague", VAGUE_DOC)
    if share < 0.7:
        return Instance(name, operation, quirk, "true", f"{operation.name} x")
    others = [other for other in known if other != operation]
    return Instance(name, operation, quirk, "false", f"{rng.choice(others).name} x")


def tool_set_of(instances: tuple[Instance, ...]) -> ToolSet:
    """Return the tool set that a session opens with."""
    return ToolSet(
        tools=tuple(instance.spec for instance in instances),
        sources=tuple(instance.source for instance in instances),
        functions=tuple(instance.name for instance in instances),
    )
