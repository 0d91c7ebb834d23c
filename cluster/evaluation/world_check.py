"""`trialrun check`: what a model meets in an environment, before any run."""

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cluster.config.run_config import RunConfig
from cluster.fleet.balanced_tools import LocalTools
from cluster.lifecycle.inputs import RunInputs, resolve_available
from cluster.progress import Progress
from cluster.scheduling.prompt_check import prompt_tokens
from cluster.scheduling.tool_check import LoadedSet, load_sets, notes_on, sets_of
from envs.errors import ConfigError, MissingError
from envs.messages import Reply
from envs.services.router import ToolRouter
from envs.tasks import Environment, Task
from envs.tools import JsonObject
from rollout.chat.template import ChatTemplate
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.engines.student_format import StudentFormat
from rollout.engines.written_turns import Turns, names_of, read_turns, reply_of
from rollout.episode import Episode, Lease, Phase, RolloutKind
from rollout.language import Language, format_of
from rollout.prompts import make_prompts, tool_schemas
from rollout.runner import EpisodeRunner, Identity
from rollout.transcript import observations_of

GENERATED = 4
"""Tasks that are looked at of an environment that generates them without end."""
_LAST_EXPERIENCE = "<experience>the script has ended</experience>"
_LAST_ANSWER = "<answer>the script has ended</answer>"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command was asked for; an empty `task` is the first one."""

    task: str = ""
    play: Path | None = None


def run_check(config: RunConfig, options: Options, progress: Progress) -> JsonObject:
    """Return a report; its `faults` are what would go wrong in a run.

    Raises what an environment raises that cannot be made, and ConfigError for an unknown task or a
    file of turns that is none.
    """
    environment, inputs, without_model = resolve_available(config, progress)
    tasks = _tasks_of(environment, config)
    shown = _chosen(tasks, options.task)
    scripts = read_turns("--play", options.play, tasks) if options.play else {}
    progress.phase("loading the tools, each once")
    loaded = load_sets(sets_of(tasks), config)
    faults = [f"task {each.tasks[0]}: {each.error}" for each in loaded if each.error]
    prompts = _prompts(inputs, tasks)
    faults += [str(fault) for fault in _list(prompts.pop("faults", []))]
    report: JsonObject = {
        "environment": environment.name,
        "tasks": len(tasks),
        "splits": _counted([task.split for task in tasks]),
        "tool_sets": [_set_report(each) for each in loaded],
        "notes": [note for each in loaded for note in notes_on(each)],
        "model": str(inputs.model) if inputs else without_model,
        "prompts": prompts,
        "shown": _shown(shown, inputs, config),
    }
    if scripts:
        if inputs is None:
            raise MissingError(f"expected a model to play turns with: {without_model}")
        progress.phase("playing the turns")
        played = asyncio.run(_play(inputs, tasks, scripts))
        report["played"] = [_played(episode, scripts[episode.lease.task]) for episode in played]
    return {**report, "faults": [*faults]}


def _tasks_of(environment: Environment, config: RunConfig) -> Sequence[Task]:
    if environment.endless:
        return environment.tasks("train", config.run.seed, GENERATED)
    return environment.all_tasks()


def _chosen(tasks: Sequence[Task], name: str) -> Task:
    if not name:
        return tasks[0]
    found = [task for task in tasks if name in names_of(task)]
    if not found:
        raise ConfigError(
            f"expected a task named {name!r}, found none among {len(tasks)}: the first is "
            f"{tasks[0].id}"
        )
    return found[0]


def _set_report(loaded: LoadedSet) -> JsonObject:
    tool_set = loaded.tool_set
    endpoint = tool_set.endpoint
    return {
        "place": loaded.place,
        "tasks": len(loaded.tasks),
        "tools": [tool.name for tool in tool_set.tools],
        "state": endpoint.isolation if endpoint else "sandbox",
        "loads": not loaded.error,
        "error": loaded.error,
        "left_out": [{"name": each.name, "why": each.why} for each in tool_set.left_out],
    }


def _prompts(inputs: RunInputs | None, tasks: Sequence[Task]) -> JsonObject:
    """Return how long the prompts are, and which do not fit."""
    if inputs is None:
        return {}
    counted = sorted(prompt_tokens(inputs, tasks), key=lambda pair: pair[1])
    most = inputs.config.model.max_model_len
    long = [
        f"task {name}: its prompt has {count} tokens, and model.max_model_len is {most}"
        for name, count in counted
        if count >= most
    ]
    name, longest = counted[-1]
    return {
        "longest_task": name,
        "longest_tokens": longest,
        "median_tokens": counted[len(counted) // 2][1],
        "max_model_len": most,
        "fit": not long,
        "faults": [*long],
    }


def _shown(task: Task, inputs: RunInputs | None, config: RunConfig) -> JsonObject:
    """Return what the model sees at the start of a task."""
    schemas = tool_schemas(task.tool_set.tools)
    found: JsonObject = {"task": task.id, "tools": [*schemas]}
    if inputs is None:
        prompts = make_prompts(config.episode.prompt, wrap_answers=True)
        opening = prompts.opening(task, config.episode.mode, config.episode.trial.calls)
        return {**found, "prompt": "\n\n".join(f"{m.role}: {m.content}" for m in opening)}
    template = ChatTemplate.load(inputs.model, inputs.config.model)
    format = format_of(template, inputs.config.model.tool_format)
    language = Language(template, format, task, inputs.config.episode)
    ids = language.tokenise(language.opening())
    by_tool: JsonObject = {
        tool.name: len(template.encode(json.dumps(schema, ensure_ascii=False)))
        for tool, schema in zip(task.tool_set.tools, schemas, strict=True)
    }
    return {**found, "tokens": len(ids), "tokens_by_tool": by_tool, "prompt": template.decode(ids)}


async def _play(
    inputs: RunInputs, tasks: Sequence[Task], scripts: Mapping[str, Turns]
) -> list[Episode]:
    config = inputs.config
    template = ChatTemplate.load(inputs.model, config.model)
    student = StudentFormat(template, format_of(template, config.model.tool_format))
    servers = LocalTools("check", config.tools)
    tools = ToolRouter(servers, config.tools, os.environ)
    identity = Identity(
        worker="check",
        source="script",
        max_model_len=config.model.max_model_len,
        tool_format=config.model.tool_format,
    )
    await servers.start()
    try:
        episodes = []
        for task in (task for task in tasks if task.id in scripts):
            reply = _reply(scripts[task.id], tried=config.episode.mode != "direct")
            engine = ScriptedEngine(reply, template, student)
            runner = EpisodeRunner(engine, tools, template, identity)
            episodes.append(await runner.run_episode(_lease(task), task, config.episode))
        return episodes
    finally:
        await tools.close()


def _reply(turns: Turns, *, tried: bool) -> Reply:
    """Return a policy that writes the turns of a script, and ends the episode after them, so that
    what was called is scored.
    """
    if tried and not any("<experience>" in turn for turn in turns):
        turns = (*turns, _LAST_EXPERIENCE)
    return reply_of(turns, lambda: _LAST_ANSWER)


def _lease(task: Task) -> Lease:
    return Lease(
        run="check",
        episode="check",
        kind=RolloutKind.EVAL,
        group="check",
        group_number=0,
        task=task.id,
        sample_index=0,
        attempt=0,
        seed=0,
    )


def _played(episode: Episode, script: Turns) -> JsonObject:
    told = observations_of(episode)
    turns: list[JsonValue] = [
        {
            "text": turn.text,
            "phase": turn.phase.name.lower(),
            "policy_error": turn.policy_error,
            "told": " ".join(message.content for message in told[number]),
            "calls": [
                {"name": call.name, "status": call.status.value, "result": call.result}
                for call in turn.calls
            ],
        }
        for number, turn in enumerate(episode.turns)
    ]
    return {
        "task": episode.lease.task,
        "outcome": episode.outcome.value,
        "error": episode.error,
        "reward": episode.reward,
        "reward_parts": dict(episode.reward_parts),
        "isolation": episode.isolation,
        "tokens": len(episode.token_ids_T),
        "turns": turns,
        "remarks": [*_remarks(episode, script)],
    }


def _remarks(episode: Episode, script: Turns) -> Iterator[str]:
    """Yield what a reader of the turns may not have meant."""
    for number, turn in enumerate(episode.turns[: len(script)], start=1):
        if turn.policy_error and "<answer>" in turn.text and turn.phase is not Phase.EXECUTION:
            yield (
                f"turn {number} answers before the trials have ended: write an <experience> before "
                "it, or set episode.mode=direct, which has no trials"
            )
        elif turn.policy_error:
            yield f"turn {number} is not valid: {turn.policy_error.replace('_', ' ')}"
    if len(episode.turns) > len(script):
        yield "the turns end before the episode does: let the last one give an <answer>"
    elif len(episode.turns) < len(script):
        yield f"the episode ended after {len(episode.turns)} of {len(script)} turns"


def _counted(names: Sequence[str]) -> dict[str, JsonValue]:
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []
