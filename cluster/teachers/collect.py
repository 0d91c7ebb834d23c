"""`trialrun collect`: demonstrations of a scripted teacher, a chat endpoint, the policy itself, or
turns that somebody wrote, filtered for `trialrun sft --from`.
"""

import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.table import Table

from cluster.config.run_config import RolloutsSection, RunConfig
from cluster.fleet.open_pool import open_pool
from cluster.fleet.ray_session import ray_session
from cluster.jobs.directories import RUN_DIRECTORY_IS
from cluster.lifecycle.inputs import RunInputs, resolve_inputs
from cluster.lifecycle.mirroring import mirror_once
from cluster.lifecycle.opening import Opening, Resume, prepare_run
from cluster.progress import Progress
from cluster.running import run_async
from cluster.scheduling.collection import Collection, CollectionSize
from cluster.scheduling.dispatcher import Dispatcher, EpisodeWorkers
from cluster.scheduling.prompt_check import check_some_prompts
from cluster.scheduling.task_sources import (
    collection_size,
    demonstrated_tasks,
    unused_turns,
    written_turns,
)
from cluster.scheduling.tool_check import say_of_tools, training_sample
from cluster.teachers.selection_file import SelectionFile, episodes_of, select_episodes
from cluster.teachers.teacher import (
    EndpointTeacher,
    WrittenTeacher,
    check_teacher,
    open_host,
    scripted_teacher,
)
from envs.errors import ConfigError
from envs.remote.tokens import check_header
from envs.tools import JsonObject
from rollout.chat.template import ChatTemplate
from rollout.engines.openai_client import ChatClient, Spending
from rollout.engines.openai_config import EndpointConfig
from rollout.engines.openai_prompt import TeacherNotes
from rollout.engines.student_format import StudentFormat
from rollout.evaluation.teacher_filter import FilterContext
from rollout.language import format_of
from rollout.store.ledger_state import State
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import RunReader

_APART = ("by_tag", "failures", "examples")
"""Parts of the report that are shown apart from its numbers."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ATTEMPTS_OF_TURNS = 2
"""A second one only for a tool server that was lost."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run_collect(
    config: RunConfig, out: Path, *, resume: bool, requeue: bool = False, trusted: bool = False
) -> JsonObject:
    """Collect episodes into the run directory `out`, or resume that, and filter what it holds.

    `trusted` as for `check_run`. Raises ConfigError where a collection cannot be resumed under
    other settings, or is impossible.
    """
    progress = Progress()
    progress.phase("preparing model and tasks")
    wanted = Resume.flag(resume=resume, requeue=requeue)
    opening = prepare_run(RunKind.COLLECT, out, config, wanted, progress, trusted=trusted)
    inputs = resolve_inputs(config)
    section, size = config.collect, _size(inputs)
    progress.phase(
        f"{section.source}: {size.tasks} tasks x {section.samples} "
        f"in mode {config.episode.mode}; {RUN_DIRECTORY_IS}{out.absolute()}"
    )
    affordable = True
    if opening.resumes and _is_complete(out, size):
        progress.say("no episode is missing")
    else:
        _check_source(inputs, progress)
        if warning := check_some_prompts(inputs, demonstrated_tasks(config, inputs.environment)):
            progress.say(warning)
        if section.source == "turns" and (left := unused_turns(config, inputs.environment)):
            progress.say(f"turns of {', '.join(left)} are not used: they are no training tasks")
        say_of_tools(config, training_sample(config, inputs.environment), progress)
        with ray_session(config) if section.source == "policy" else nullcontext():
            affordable = run_async(_collect(inputs, opening, size, progress))
    file = select_episodes(out, section.filter, _given(inputs))
    mirror_once(config, out, progress)
    _show(file, out)
    report = {name: value for name, value in file.report.items() if name not in _APART}
    spent = _spent(out) if section.source == "endpoint" else None
    cost: JsonObject = {"requests": spent.requests, "teacher_tokens": spent.tokens} if spent else {}
    stopped = "" if affordable else "the budget is spent: raise it and resume with --resume"
    return {"run_dir": str(out), **report, **cost, **({"stopped": stopped} if stopped else {})}


def _size(inputs: RunInputs) -> CollectionSize:
    section = inputs.config.collect
    return CollectionSize(
        tasks=collection_size(inputs.config, inputs.environment),
        samples=section.samples,
        seed=inputs.config.run.seed,
        concurrency=section.concurrency,
    )


def _is_complete(out: Path, size: CollectionSize) -> bool:
    """Whether the collection in `out` lacks no episode."""
    ledger = RunReader(out).ledger()
    ended = all(entry.state is State.DROPPED for entry in ledger.entries.values())
    return ended and len(ledger.groups) >= size.tasks


def _check_source(inputs: RunInputs, progress: Progress) -> None:
    """Raise ConfigError, or EngineError, where the source of the collection cannot act."""
    section = inputs.config.collect
    if section.source == "scripted":
        check_teacher(inputs)
    elif section.source == "endpoint" and (warning := run_async(_check_endpoint(section.endpoint))):
        progress.say(warning)


async def _check_endpoint(endpoint: EndpointConfig) -> str:
    """Return a warning about the endpoint, or nothing."""
    async with open_http(endpoint) as http:
        return await ChatClient(http, endpoint, endpoint_key(endpoint, os.environ)).check()


async def _collect(
    inputs: RunInputs, opening: Opening, size: CollectionSize, progress: Progress
) -> bool:
    """Run all missing episodes; returns whether the budget lasted."""
    config = inputs.config
    async with _open_source(inputs, opening.path) as source:
        with opening.open(progress) as run:
            if opening.resumes and source.client is not None:
                source.client.spent.add(_spent(run.path))
            episode = config.episode.model_copy(update={"temperature": config.collect.temperature})
            dispatcher = Dispatcher(source.workers, run, retry_section(config), episode)
            tasks = demonstrated_tasks(config, inputs.environment)
            collection = Collection(run, tasks, dispatcher, size, source.affordable)
            await collection.run_all(progress)
            return not run.ledger.open_leases() and len(run.ledger.groups) >= size.tasks


def retry_section(config: RunConfig) -> RolloutsSection:
    """Return the limits of retries: an endpoint's own, since its tries cost money; and few for
    written turns, which lead to the same every time.
    """
    section, collect = config.rollouts, config.collect
    attempts = {
        "endpoint": collect.endpoint.episode_attempts,
        "turns": min(section.max_attempts, _ATTEMPTS_OF_TURNS),
    }.get(collect.source, section.max_attempts)
    return section.model_copy(update={"max_attempts": attempts})


@dataclass(frozen=True, slots=True)
class _Source:
    workers: EpisodeWorkers
    client: ChatClient | None = None

    def affordable(self) -> bool:
        return self.client is None or self.client.budget_left


@asynccontextmanager
async def _open_source(inputs: RunInputs, out: Path) -> AsyncIterator[_Source]:
    """Start what runs the episodes: a pool of workers, or a teacher in this process."""
    section = inputs.config.collect
    if section.source == "policy":
        async with open_pool(inputs.config, inputs.model, out) as pool:
            await pool.wait_healthy()
            yield _Source(pool)
        return
    if section.source == "scripted":
        async with open_host(inputs, out) as host:
            yield _Source(scripted_teacher(inputs, host))
        return
    if section.source == "turns":
        turns = written_turns(inputs.config, inputs.environment)
        async with open_host(inputs, out) as host:
            yield _Source(WrittenTeacher(host, turns))
        return
    endpoint = section.endpoint
    async with open_http(endpoint) as http:
        client = ChatClient(http, endpoint, endpoint_key(endpoint, os.environ))
        async with open_host(inputs, out) as host:
            yield _Source(EndpointTeacher(host, client, endpoint), client)


def endpoint_key(endpoint: EndpointConfig, variables: Mapping[str, str]) -> str:
    """Check the endpoint's address and names, and return its key, empty for none.

    Raises ConfigError, never repeating what could be a secret.
    """
    url = urlsplit(endpoint.base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            "collect.endpoint.base_url (--base-url): expected http://HOST/... or https://HOST/..., "
            "found another kind of address"
        )
    if url.username or url.password or url.query or url.fragment:
        raise ConfigError(
            "collect.endpoint.base_url (--base-url): expected a plain address, found one with "
            "credentials or a query, which would be written into the run directory: "
            "put the key into an environment variable and name that with --key-variable"
        )
    if not endpoint.model:
        raise ConfigError("source 'endpoint' needs collect.endpoint.model (--model)")
    name = endpoint.key_variable
    if not name:
        return ""
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(
            "collect.endpoint.key_variable (--key-variable): expected the name of an environment "
            "variable, found what cannot be one; the key itself does not belong there"
        )
    if not variables.get(name, "").strip():
        raise ConfigError(
            f"the environment variable {name} holds no key: export it, or name another"
        )
    return check_header(
        variables[name].strip(),
        f"the key in ${name} (collect.endpoint.key_variable, --key-variable)",
    )


def open_http(endpoint: EndpointConfig) -> httpx.AsyncClient:
    """Return the HTTP client; the ChatClient sets deadlines, the environment the proxies."""
    local = urlsplit(endpoint.base_url).hostname in _LOOPBACK
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx.AsyncClient(timeout=None, limits=limits, trust_env=not local)


def _given(inputs: RunInputs) -> FilterContext:
    """Return what the filter has to know of the prompt that the source was given."""
    section, model = inputs.config.collect, inputs.config.model
    template = ChatTemplate.load(inputs.model, model)
    control = StudentFormat(template, format_of(template, model.tool_format)).foreign_tokens
    if section.source != "endpoint":
        return FilterContext("", control)
    notes = TeacherNotes(inputs.config.episode, section.endpoint.tool_format).text()
    return FilterContext(notes, control)


def _spent(out: Path) -> Spending:
    """Return the spending of stored episodes; that of interrupted ones is unknown."""
    total = Spending()
    reader = RunReader(out)
    for episode in episodes_of(reader, reader.episodes()):
        counts = {name: int(episode.extra.get(f"teacher_{name}", 0)) for name in _COUNTS}
        total.add(Spending(**counts))
    return total


_COUNTS = ("requests", "prompt_tokens", "completion_tokens")


def _show(file: SelectionFile, out: Path) -> None:
    """Print how many episodes were selected and dropped, by reason."""
    report = file.report
    table = Table(title=f"{report['episodes']} episodes", show_edge=False)
    table.add_column("")
    table.add_column("episodes", justify="right")
    table.add_row("selected", str(report["selected"]))
    dropped = report["dropped"]
    assert isinstance(dropped, dict)
    for reason, count in dropped.items():
        table.add_row(reason.replace("_", " "), str(count))
    console = Console(stderr=True, highlight=False)
    console.print(table)
    failures = report["failures"]
    assert isinstance(failures, dict)
    for error, count in failures.items():
        console.print(f"{count} x {error}", markup=False, soft_wrap=True)
    examples = report["examples"]
    assert isinstance(examples, list)
    for example in examples:
        console.print(f"for example {example}", markup=False, soft_wrap=True)
    if not report["selected"]:
        way = f"look at an episode with: trialrun episodes {out} EPISODE"
        rules = "the rules are collect.filter (`trialrun keys`)"
        console.print(f"nothing was selected: {way}; {rules}", markup=False, soft_wrap=True)
    console.print(f"the selection is in {RunLayout(out).selection}", soft_wrap=True)
