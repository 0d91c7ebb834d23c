"""Tool sets from ToolHop questions: pairs each tool with its source, without running any code."""

import ast
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from envs.tasksets.toolhop.questions import ToolHopQuestion, ToolHopTool
from envs.tools import ToolSet, ToolSpec

Choice = Literal["named", "last definition", "unparsable"]


@dataclass(frozen=True, slots=True)
class Definition:
    """A function defined at the top level of a source."""

    name: str
    parameters: frozenset[str]


@dataclass(frozen=True, slots=True)
class Binding:
    """The source and the function that implement one tool, and how they were chosen.

    `named`: a function with the tool's name; if names repeat, the one whose parameters fit the
    schema best. `last definition`: no source defines that name, so the last function of an unused
    source is taken. `unparsable`: the unused source has no function or cannot be parsed; calls
    return tool errors.
    """

    source: str
    function: str
    choice: Choice


def definitions(source: str) -> tuple[Definition, ...]:
    """Return the top-level functions of `source`, which is parsed and never executed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    return tuple(
        Definition(
            node.name, frozenset(arg.arg for arg in (*node.args.args, *node.args.kwonlyargs))
        )
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    )


def bind_tools(tools: Sequence[ToolHopTool], sources: Sequence[str]) -> tuple[Binding, ...]:
    """Pair each of `tools` with one of `sources`, by function name, then by parameters.

    There are as many sources as tools, in another order. Pairs with equal names are assigned
    greedily, fewest parameter mismatches first; remaining tools get the unused sources in order.
    """
    found = [definitions(source) for source in sources]
    fits: list[tuple[int, int, int]] = []
    for i, tool in enumerate(tools):
        properties = frozenset(tool.parameters.properties)
        for j, functions in enumerate(found):
            mismatches = [len(properties ^ f.parameters) for f in functions if f.name == tool.name]
            if mismatches:
                fits.append((mismatches[-1], i, j))
    bindings: dict[int, Binding] = {}
    taken: set[int] = set()
    for _, i, j in sorted(fits):
        if i not in bindings and j not in taken:
            bindings[i] = Binding(sources[j], tools[i].name, "named")
            taken.add(j)
    left_over = iter([j for j in range(len(sources)) if j not in taken])
    for i, tool in enumerate(tools):
        if i not in bindings:
            j = next(left_over)
            last = found[j][-1].name if found[j] else tool.name
            bindings[i] = Binding(sources[j], last, "last definition" if found[j] else "unparsable")
    return tuple(bindings[i] for i in range(len(tools)))


def tool_set_of(question: ToolHopQuestion) -> tuple[ToolSet, tuple[Choice, ...]]:
    """Return the question's tool set, and how each tool's function was chosen.

    A name that several tools share gets a suffix from its second use on (`extract_first_name_2`),
    so that each can be called. Sub-questions and their answers are left out, because
    tool code in the sandbox can read the complete tool set.
    """
    tools = tuple(question.tools.values())
    bindings = bind_tools(tools, question.functions)
    specs = tuple(
        ToolSpec(
            name=name,
            description=tool.description,
            parameters=tool.parameters.model_dump(mode="json"),
        )
        for name, tool in zip(_distinct([tool.name for tool in tools]), tools, strict=True)
    )
    tool_set = ToolSet(
        tools=specs,
        sources=tuple(binding.source for binding in bindings),
        functions=tuple(binding.function for binding in bindings),
    )
    return tool_set, tuple(binding.choice for binding in bindings)


def _distinct(names: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    distinct: list[str] = []
    for name in names:
        seen[name] += 1
        candidate = name if seen[name] == 1 else f"{name}_{seen[name]}"
        while candidate in distinct or (candidate != name and candidate in names):
            seen[name] += 1
            candidate = f"{name}_{seen[name]}"
        distinct.append(candidate)
    return distinct
