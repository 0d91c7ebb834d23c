"""Before a run: whether tools can be loaded, who sees what they change, and what was left out."""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from cluster.config.run_config import RunConfig
from cluster.progress import Progress
from envs.config import ToolServerConfig
from envs.errors import ConfigError, DeadlineError, InfraError, IsolationError
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.services.router import ToolRouter
from envs.services.scripted import ScriptedTools
from envs.tasks import Environment, Task
from envs.tools import STATE_CALL, AnswerStatus, ToolAnswer, ToolCall, ToolService, ToolSet

CHECKED = 256
"""Tool sets that are loaded before a run; what is wrong with further ones is found as it comes."""
_AT_ONCE = 8
_SHOWN = 3
_MOST_NOTES = 6
_MAX_ERROR = 600


@dataclass(frozen=True, slots=True)
class LoadedSet:
    """A tool set below all adaptations and compositions, the tasks that have it, and why it cannot
    be loaded; empty if it can.
    """

    tool_set: ToolSet
    tasks: tuple[str, ...]
    error: str = ""

    @property
    def place(self) -> str:
        """Where its tools run."""
        endpoint = self.tool_set.endpoint
        return "the sandbox" if endpoint is None else f"{endpoint.kind} {endpoint.place}"


def sets_of(tasks: Sequence[Task]) -> list[LoadedSet]:
    """Return the different tool sets of `tasks`, not loaded yet."""
    sets: dict[str, ToolSet] = {}
    names: dict[str, list[str]] = {}
    for task in tasks:
        for leaf in _leaves(task.tool_set):
            sets.setdefault(leaf.digest, leaf)
            names.setdefault(leaf.digest, []).append(task.id)
    return [LoadedSet(sets[digest], tuple(names[digest])) for digest in sets]


def load_sets(sets: Sequence[LoadedSet], config: RunConfig) -> list[LoadedSet]:
    """Open a session on each of `sets`, load its tools, and return them with what went wrong.

    No tool is run. Raises IsolationError, and SandboxError if no tool server starts.
    """
    with _servers(sets, config) as server:
        return asyncio.run(_load(sets, config, server))


def check_tools(config: RunConfig, tasks: Sequence[Task]) -> list[str]:
    """Return what a user should know of the tools of `tasks` before a run.

    Raises ConfigError if the tools of a task cannot be loaded: one message, and no error in every
    episode.
    """
    sets = sets_of(tasks)
    faults = [each for each in load_sets(sets[:CHECKED], config) if each.error]
    if faults:
        shown = "; ".join(f"{_named(each.tasks)}: {each.error}" for each in faults[:_SHOWN])
        raise ConfigError(
            f"the tools of {len(faults)} of {len(sets[:CHECKED])} tool sets cannot be loaded "
            f"({shown}): correct them; `trialrun check` shows all"
        )
    return [note for each in sets for note in notes_on(each)]


def say_of_tools(config: RunConfig, tasks: Sequence[Task], progress: Progress) -> None:
    """Check the tools of `tasks` and say what `check_tools` returns. Raises as that does."""
    try:
        notes = check_tools(config, tasks)
    except IsolationError as error:
        progress.say(
            f"the tools are not tried before the run, because this machine cannot: {error}"
        )
        return
    for note in notes[:_MOST_NOTES]:
        progress.say(note)
    if len(notes) > _MOST_NOTES:
        progress.say(f"{len(notes) - _MOST_NOTES} more notes on tools: see `trialrun check`")


def training_sample(config: RunConfig, environment: Environment) -> Sequence[Task]:
    """Return the tasks of training whose tools are tried before a run: none of an environment that
    generates them, which is part of the program.
    """
    return [] if environment.endless else environment.tasks("train", config.run.seed, None)


def notes_on(loaded: LoadedSet) -> Iterator[str]:
    """Yield what a user should know of one tool set."""
    tool_set = loaded.tool_set
    endpoint = tool_set.endpoint
    if endpoint is not None and endpoint.isolation == "shared":
        yield (
            f"the state of {loaded.place} is shared: what one session changes, trials included, "
            f"all others see ({_named(loaded.tasks)}){_WAYS_OUT.get(endpoint.kind, '')}"
        )
    if tool_set.left_out:
        names = ", ".join(each.name for each in tool_set.left_out[:_SHOWN])
        more = ", ..." if len(tool_set.left_out) > _SHOWN else ""
        yield f"{loaded.place}: {len(tool_set.left_out)} left out ({names}{more})"


_WAYS_OUT: Mapping[str, str] = {
    "mcp-stdio": ': use {scratch} in its command, or say "state": "session" if it keeps none',
    "mcp-http": ': say "state": "session" if it keeps none beyond an MCP session',
    "http": ": its trials may only read",
}


def _leaves(tool_set: ToolSet) -> Iterator[ToolSet]:
    root = tool_set.root
    if not root.parts:
        yield root
    for part in root.parts:
        yield from _leaves(part)


def _named(tasks: Sequence[str]) -> str:
    more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
    return f"task {tasks[0]}{more}"


def _servers(
    sets: Sequence[LoadedSet], config: RunConfig
) -> AbstractContextManager[ToolServerProcess | None]:
    code = any(each.tool_set.sandboxed for each in sets)
    return ToolServerProcess(_unrecorded(config)) if code else nullcontext()


def _unrecorded(config: RunConfig) -> ToolServerConfig:
    """Return `[tools]` without recording: nothing here is traffic of the run."""
    return config.tools.model_copy(update={"record": False})


async def _load(
    sets: Sequence[LoadedSet], config: RunConfig, server: ToolServerProcess | None
) -> list[LoadedSet]:
    nothing = ScriptedTools(lambda *_: ToolAnswer(status=AnswerStatus.OK, text="", seconds=0.0))
    sandboxed = ToolClient(server.address, config.tools) if server else nothing
    unrecorded = _unrecorded(config)
    tools = ToolRouter(sandboxed, unrecorded, os.environ)
    room = asyncio.Semaphore(_AT_ONCE)

    async def load(each: LoadedSet) -> LoadedSet:
        async with room:
            error = await _error_of(each.tool_set, tools)
        return LoadedSet(each.tool_set, each.tasks, error)

    try:
        return await asyncio.gather(*map(load, sets))
    finally:
        await tools.close()


async def _error_of(tool_set: ToolSet, tools: ToolService) -> str:
    """Return why the tools of a set cannot be loaded, or empty."""
    try:
        session = await tools.open_session(tool_set, 0, "trial")
    except (InfraError, DeadlineError) as error:
        return _short(str(error))
    try:
        if not tool_set.sandboxed:
            return ""
        # reading the state executes every source and makes every object, and runs no tool
        (state,) = await session.call([ToolCall(name=STATE_CALL, arguments={})])
    except (InfraError, DeadlineError) as error:
        return _short(str(error))
    finally:
        await session.close()
    return "" if state.status is AnswerStatus.OK else _short(state.text)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_ERROR else text[:_MAX_ERROR] + "..."
