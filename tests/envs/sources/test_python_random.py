"""Random Python sources: each loads or is refused by us, and what loads is checked and answers."""

import inspect
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.argument_check import check_arguments
from envs.errors import DataFileError
from envs.example_arguments import example_arguments
from envs.perturbation.perturb import perturb
from envs.sandbox.inside.fitting import invoked
from envs.sandbox.inside.values import as_text
from envs.sources.python import tool_set_of_class, tool_set_of_functions
from envs.tools import ToolSet
from tests.random_examples import examples

PREAMBLE = """
import collections, datetime, decimal, enum, typing, uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import *
T = TypeVar("T")
class Color(enum.Enum):
    RED = "red"
    TWO = 2
class Code(enum.IntEnum):
    A = 1
    B = enum.auto()
@dataclass
class Point:
    x: int
    y: float = 0.5
    more: "list[Point]" = field(default_factory=list)
class Place(TypedDict, total=False):
    street: Required[str]
    number: int
class Pair(NamedTuple):
    low: int
    high: int = 3
Name = NewType("Name", str)
Names = list[Name]
class Plain: ...
"""
_LEAVES = """
str int float bool None Any object bytes list dict tuple set Color Code Point Place Pair Name Names
Plain T datetime.date datetime.datetime datetime.timedelta decimal.Decimal uuid.UUID Path Callable
"Point" "nowhere.at" collections.deque Literal[1,"a",None] Literal[Color.RED] complex type
"""
LEAVES = _LEAVES.split()
OPEN = ["list[{}]", "set[{}]", "dict[str, {}]", "dict[int, {}]", "Optional[{}]", "tuple[{}, ...]"]
OPEN += ["tuple[{}]", "Sequence[{}]", "Mapping[str, {}]", 'Annotated[{}, "text"]', "{} | None"]
OPEN += ["Union[{}, int]", "Final[{}]", "dict[float, {}]", "Callable[[{}], int]", "type[{}]"]
ANNOTATIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.builds(str.format, st.sampled_from(OPEN), inner),
    max_leaves=4,
)
DEFAULTS = ["1", "None", "'x'", "[]", "{}", "()", "print", "1 / 2", "-1", "float('nan')", "..."]
DOCUMENTED = ["", '"""Do."""', '"""Do.\n\n    Args:\n        a: One.\n        *b: Two.\n    """']


@st.composite
def functions(draw: st.DrawFn, name: str, first: str = "") -> str:
    """Draw a function with arguments of every kind; `first` is `self`, or nothing."""
    parts = [first] if first else []
    names = iter("abcdefgh")
    optional = False

    def argument(*, may_need: bool = True) -> str:
        nonlocal optional
        annotation = draw(st.none() | ANNOTATIONS)
        text = next(names) + (f": {annotation}" if annotation else "")
        optional = optional or draw(st.booleans()) or not may_need
        return f"{text} = {draw(st.sampled_from(DEFAULTS))}" if optional else text

    parts += [argument() for _ in range(draw(st.integers(0, 2)))]
    if parts and draw(st.booleans()):
        parts.append("/")
    parts += [argument() for _ in range(draw(st.integers(0, 2)))]
    if draw(st.booleans()):
        parts.append(draw(st.sampled_from(["*", "*many", f"*many: {draw(ANNOTATIONS)}"])))
        optional = False
        keyword = argument()
        if parts[-1] == "*" or draw(st.booleans()):
            parts.append(keyword)
    if draw(st.booleans()):
        parts.append(draw(st.sampled_from(["**rest", "**rest: int"])))
    start = draw(st.sampled_from(["def", "def", "async def"]))
    told = draw(st.sampled_from(DOCUMENTED))
    return f"{start} {name}({', '.join(parts)}):\n    {told}\n    return repr(locals().keys())\n"


@st.composite
def sources(draw: st.DrawFn) -> str:
    made = [draw(functions(name)) for name in ("one", "two")]
    methods = "".join(
        "    " + draw(functions(name, "self")).replace("\n", "\n    ").rstrip() + "\n"
        for name in ("put", "get")
    )
    base = draw(st.sampled_from(["", "(Plain)", "(Generic[T])", "(Gone)"]))
    return f"{PREAMBLE}{made[0]}{made[1]}class Tools{base}:\n{methods}"


@given(sources())
@settings(
    max_examples=examples(150),
    deadline=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
def test_a_random_source_is_served_or_refused(source: str) -> None:
    for load in (tool_set_of_functions, lambda text: tool_set_of_class(text, "Tools")):
        try:
            tool_set = load(source)
        except DataFileError as error:
            assert "line" in str(error)
            continue
        answer_all(source, tool_set)


def answer_all(source: str, tool_set: ToolSet) -> None:
    """Call every tool with its example, as the sandbox does."""
    perturb(tool_set, "union", 3)
    space: dict = {"__name__": __name__}
    try:
        exec(compile(source, "drawn", "exec"), space)
    except (NameError, TypeError):
        return  # Python refuses what it is told: a default, an annotation, a base
    for tool, name in zip(tool_set.tools, tool_set.functions, strict=True):
        arguments = example_arguments(tool)
        if arguments is None:
            continue
        assert check_arguments(tool, arguments) is None
        owner, _, method = name.rpartition(".")
        function = getattr(space[owner](), method) if owner else space[name]
        try:
            found = invoked(function, json.loads(json.dumps(arguments)))
        except ValueError as error:
            assert "a set cannot hold this" in str(error)
            continue
        if inspect.iscoroutine(found):
            found.close()  # the sandbox would await it
        else:
            assert as_text(found)
