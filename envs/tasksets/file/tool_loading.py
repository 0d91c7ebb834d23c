"""Loads the tool sets that tasks name, each only once. Python code is read here, never run."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from envs.endpoints import (
    Endpoint,
    HttpEndpoint,
    McpHttpEndpoint,
    McpStdioEndpoint,
    OpenEnvEndpoint,
)
from envs.errors import DataFileError
from envs.sources.openapi.tool_set import real_tool_set, simulated_tool_set
from envs.sources.python import tool_set_of_class, tool_set_of_functions
from envs.sources.python_folder import Hidden, merged, read_folder, read_text
from envs.tasksets.file.rows import (
    FunctionTools,
    McpPlace,
    McpServerTools,
    OpenApiTools,
    OpenEnvServerTools,
    PythonTools,
    ToolSource,
)
from envs.tasksets.outside import Outside
from envs.tools import ToolSet


class ToolLoader:
    """Loads the tool sets of the tasks in `folder`. Nothing `hidden` gets into one."""

    def __init__(self, folder: Path, hidden: Hidden, outside: Outside) -> None:
        self._folder = folder
        self._hidden = hidden
        self._outside = outside
        self._made: dict[str, ToolSet] = {}

    def tool_set(self, sources: Sequence[ToolSource], *, named: bool = False) -> ToolSet:
        """Return the tools of all `sources` as one set; `named` if something reads their state.

        Raises MissingError, DataFileError, and what listing raises.
        """
        named = named or len(sources) > 1
        key = " ".join(
            f"{named} {type(source).__name__} {source.model_dump_json()}" for source in sources
        )
        if key not in self._made:
            simulated = [isinstance(each, OpenApiTools) and not each.real for each in sources]
            self._made[key] = combined(
                [
                    self._chosen(source, named, sum(simulated[:number]))
                    for number, source in enumerate(sources)
                ]
            )
        return self._made[key]

    def _chosen(self, source: ToolSource, named: bool, simulations: int) -> ToolSet:
        """Return the tools of a source; `simulations` is how many the sources before it have."""
        tool_set = self._loaded(source, named, simulations)
        if source.include is None and not source.exclude:
            return tool_set
        include, exclude = source.include, source.exclude
        if self._outside.is_record:  # tools that were not wanted may be missing already
            names = [tool.name for tool in tool_set.tools]
            include, exclude = (
                patterns and tuple(p for p in patterns if any(fnmatchcase(n, p) for n in names))
                for patterns in (include, exclude)
            )
            include = include or None
        return chosen(tool_set, include, exclude or (), given=source)

    def _loaded(self, source: ToolSource, named: bool, simulations: int) -> ToolSet:
        match source:
            case PythonTools(python=name):
                return self._python(name, source, named)
            case FunctionTools(functions=name):
                return self._python(name, source, named)
            case OpenApiTools():
                name = f"Simulation_{simulations + 1}" if simulations else "Simulation"
                return self._openapi(source, name)
            case McpServerTools(mcp=place):
                wanted = {"include": source.include, "exclude": source.exclude}
                wanted = wanted if self._outside.is_record else {}
                endpoint = _mcp_endpoint(place, self._folder).model_copy(update=wanted)
                return self._outside.list_tools(endpoint)
            case OpenEnvServerTools(openenv=place):
                endpoint = OpenEnvEndpoint(url=place.url, world=place.world, reset=place.reset)
                return self._outside.list_tools(endpoint)

    def _openapi(self, source: OpenApiTools, name: str) -> ToolSet:
        path = self._folder / source.openapi
        text, fixtures = read_text(path), ""
        if source.fixtures:
            fixtures = read_text(self._folder / source.fixtures)
        try:
            if source.real is not None:
                return real_tool_set(text, source.real, operations=source.operations)
            return simulated_tool_set(
                text,
                operations=source.operations,
                fixtures=fixtures,
                seed=source.seed,
                name=name,
            )
        except DataFileError as error:
            raise DataFileError(f"{path}: {error}") from error

    def _python(self, name: str, source: PythonTools | FunctionTools, named: bool) -> ToolSet:
        path = self._folder / name
        folder = read_folder(path, self._hidden, source.files)
        try:
            if isinstance(source, PythonTools):
                tool_set = tool_set_of_class(
                    folder.text, source.class_name, folder.trees, source.arguments
                )
            else:
                tool_set = tool_set_of_functions(folder.text, folder.trees)
        except DataFileError as error:
            raise DataFileError(f"{path}: {error}") from error
        return folder.completed(tool_set, named=named)


def combined(sets: Sequence[ToolSet]) -> ToolSet:
    """Return several sets as one: Python sources in one session, others each in their own.

    Raises DataFileError where two of them have a tool of one name.
    """
    if len(sets) == 1:
        return sets[0]
    names = [tool.name for tool_set in sets for tool in tool_set.tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataFileError(
            f"expected tools of different names from all sources, found {', '.join(twice)} more "
            "than once: leave out all but one with `exclude`"
        )
    code = [tool_set for tool_set in sets if tool_set.sandboxed]
    parts = [tool_set for tool_set in sets if not tool_set.sandboxed]
    if code:
        parts.insert(0, merged(code) if len(code) > 1 else code[0])
    if len(parts) == 1:
        return parts[0]
    return ToolSet(
        tools=tuple(tool for part in parts for tool in part.tools),
        parts=tuple(parts),
        instructions="\n\n".join(part.instructions for part in parts if part.instructions),
        left_out=tuple(left for part in parts for left in part.left_out),
    )


def chosen(
    tool_set: ToolSet,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    given: ToolSource | None = None,
) -> ToolSet:
    """Return the set with the tools that a pattern of `include` names, and none of `exclude`.

    An endpoint gets the patterns of `given` in place of these. Raises DataFileError if a
    pattern names no tool, or none is left.
    """
    names = [tool.name for tool in tool_set.tools]
    for pattern in (*(include or ()), *exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DataFileError(
                f"expected patterns of tools in `include` and `exclude`, found {pattern!r}, which "
                f"is none of {', '.join(names)}: correct it"
            )
    kept = [
        number
        for number, name in enumerate(names)
        if (include is None or any(fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    ]
    if not kept:
        raise DataFileError("expected a tool, found that `include` and `exclude` leave none")
    endpoint = tool_set.endpoint
    if isinstance(endpoint, HttpEndpoint):
        operations = tuple(endpoint.operations[number] for number in kept)
        endpoint = endpoint.model_copy(update={"operations": operations})
    elif isinstance(endpoint, McpStdioEndpoint | McpHttpEndpoint):  # whose tools may change later
        patterns = {
            "include": given.include if given else include and tuple(include),
            "exclude": given.exclude if given else tuple(exclude),
        }
        endpoint = endpoint.model_copy(update=patterns)
    lists = ("tools", *(("sources", "functions") if tool_set.sandboxed else ()))
    shorter = {key: tuple(getattr(tool_set, key)[number] for number in kept) for key in lists}
    return tool_set.model_copy(update={**shorter, "endpoint": endpoint})


def _mcp_endpoint(place: McpPlace, folder: Path) -> Endpoint:
    if place.url:
        return McpHttpEndpoint(
            url=place.url,
            token_variable=place.token_variable,
            transport=place.transport,
            state=place.state,
        )
    return McpStdioEndpoint(
        command=place.command,
        environment=place.environment,
        variables=place.variables,
        folder=str(folder.resolve()),
        start=place.start,
        state=place.state,
    )
