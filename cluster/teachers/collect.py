"""`trialrun collect`: examples for imitation from a scripted teacher, a chat endpoint, or the
policy itself, filtered and ready for `trialrun sft --from`.
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

from cluster.config.environments import make_environment
from cluster.config.run_config import RolloutsSection, RunConfig, load_config
from cluster.fleet.open_pool import open_pool
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.opening import find_model, new_run, recorded_in
from cluster.lifecycle.resume_check import check_same
from cluster.progress import Progress
from cluster.running import run_async
from cluster.scheduling.collection import Collection, Extent
from cluster.scheduling.player import Actors, Player
from cluster.teachers.selection_file import KeptFile, episodes_of, keep, kept_path
from cluster.teachers.teach import EndpointActors, open_stage, scripted_actors, teaching_stream
from envs.errors import ConfigError, StoreError
from envs.tools import JsonObject
from rollout.engines.openai_client import ChatClient, Spending
from rollout.engines.openai_config import EndpointConfig
from rollout.engines.openai_prompt import TeacherNotes
from rollout.evaluation.teacher_filter import FilterContext
from rollout.store.ledger_state import State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import RunReader
from rollout.template import ChatTemplate

_APART = ("by_tag", "failures")
"""Parts of the report that are no row of a table of numbers."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SAME = (
    *("model", "env", "episode", "run.seed"),
    *("collect.source", "collect.samples", "collect.temperature"),
)
"""What must be as before where a collection goes on."""
_SAME_ENDPOINT = tuple(f"collect.endpoint.{key}" for key in ("model", "tool_format", "thinking"))
"""The same, where an endpoint plays."""


def run_collect(config: RunConfig, out: Path, *, resume: bool) -> JsonObject:
    """Play, or go on playing, into the run directory `out`, and filter what is there.

    Raises ConfigError where a collection cannot go on under other settings, or is impossible.
    """
    progress = Progress()
    resume = _goes_on(config, out, resume=resume)
    section = config.collect
    whole = resume and _is_whole(config, out)
    if section.source == "endpoint" and not whole:
        progress.phase("asking the endpoint")
        run_async(_check_endpoint(section.endpoint))
    progress.phase("preparing the model")
    model = find_model(config)
    progress.phase(
        f"{section.source}: {_tasks(config)} tasks x {section.samples} "
        f"in mode {config.episode.mode}, episodes in {out}"
    )
    affordable = True
    if whole:
        progress.say("nothing is left to play")
    else:
        with ray_session(config) if section.source == "policy" else nullcontext():
            affordable = run_async(_collect(config, model, out, progress, resume=resume))
    template = ChatTemplate.load(model)
    kept = keep(out, section.filter, _given(config, template))
    _show(kept, out)
    report = {name: value for name, value in kept.report.items() if name not in _APART}
    spent = _spent(out) if section.source == "endpoint" else None
    cost: JsonObject = {"requests": spent.requests, "teacher_tokens": spent.tokens} if spent else {}
    stopped = "" if affordable else "the budget is spent: raise it and go on with --resume"
    return {"run_dir": str(out), **report, **cost, **({"stopped": stopped} if stopped else {})}


def _goes_on(config: RunConfig, out: Path, *, resume: bool) -> bool:
    """Whether there is something to go on with. Raises StoreError, ConfigError where that may not
    be.
    """
    layout = RunLayout(out)
    if not layout.run_json.exists():
        return False
    if not resume:
        raise StoreError(
            f"there is a run in {out} already: go on with --resume, or choose another --out"
        )
    check_goes_on(config, load_config(str(layout.config_toml)))
    return True


def _is_whole(config: RunConfig, out: Path) -> bool:
    """Whether the collection that `out` holds lacks nothing."""
    with RunDirectory.open(out) as run:
        run.recover(-1)
        ledger = run.ledger
        ended = all(entry.state is State.DROPPED for entry in ledger.entries.values())
        return ended and len(ledger.groups) >= _tasks(config)


async def _check_endpoint(endpoint: EndpointConfig) -> None:
    async with open_http(endpoint) as http:
        await ChatClient(http, endpoint, endpoint_key(endpoint, os.environ)).check()


async def _collect(
    config: RunConfig, model: Path, out: Path, progress: Progress, *, resume: bool
) -> bool:
    """Play all there is to play; returns whether the budget lasted."""
    section = config.collect
    async with _acting(config, model, out) as acting:
        with RunDirectory.open(out) if resume else new_run(out, config) as run:
            if resume:
                run.recover(-1)
                if acting.client is not None:
                    acting.client.spent.add(_spent(out))
            extent = Extent(_tasks(config), section.samples, config.run.seed, section.concurrency)
            episode = config.episode.model_copy(update={"temperature": section.temperature})
            player = Player(acting.actors, run, playing_section(config), episode)
            stream = teaching_stream(config)
            collection = Collection(run, stream, player, extent, acting.affordable)
            await collection.play_all(progress)
            return not run.ledger.open_leases() and len(run.ledger.groups) >= extent.tasks


def playing_section(config: RunConfig) -> RolloutsSection:
    """Return how often an episode is tried: at an endpoint as often as its section says."""
    section, collect = config.rollouts, config.collect
    if collect.source != "endpoint":
        return section
    return section.model_copy(update={"max_attempts": collect.endpoint.episode_attempts})


@dataclass(frozen=True, slots=True)
class _Acting:
    actors: Actors
    client: ChatClient | None = None

    def affordable(self) -> bool:
        return self.client is None or self.client.budget_left


@asynccontextmanager
async def _acting(config: RunConfig, model: Path, out: Path) -> AsyncIterator[_Acting]:
    """Start whoever plays."""
    section = config.collect
    if section.source == "policy":
        async with open_pool(recorded_in(config, out), model) as pool:
            await pool.wait_healthy()
            yield _Acting(pool)
        return
    if section.source == "scripted":
        async with open_stage(config, model, out) as stage:
            yield _Acting(scripted_actors(config, stage))
        return
    endpoint = section.endpoint
    async with open_http(endpoint) as http:
        client = ChatClient(http, endpoint, endpoint_key(endpoint, os.environ))
        async with open_stage(config, model, out) as stage:
            yield _Acting(EndpointActors(stage, client, endpoint), client)


def endpoint_key(endpoint: EndpointConfig, variables: Mapping[str, str]) -> str:
    """Check how the endpoint is named, and return its key, empty for none.

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
    return variables[name].strip()


def open_http(endpoint: EndpointConfig) -> httpx.AsyncClient:
    """Return the HTTP client; deadlines are the ChatClient's, proxies those of the environment."""
    local = urlsplit(endpoint.base_url).hostname in _LOOPBACK
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx.AsyncClient(timeout=None, limits=limits, trust_env=not local)


def check_goes_on(config: RunConfig, before: RunConfig) -> None:
    """Raise ConfigError where a collection would go on under settings that change its episodes."""
    same = [*_SAME, *(_SAME_ENDPOINT if config.collect.source == "endpoint" else ())]
    check_same("the collection", before, config, same, instead="choose another --out")


def _tasks(config: RunConfig) -> int:
    """Return the number of tasks: what is asked for, of a file of tasks at most all."""
    environment = make_environment(config.env)
    if environment.endless:
        return config.collect.tasks
    return min(config.collect.tasks, len(environment.tasks("train", config.run.seed, None)))


def _given(config: RunConfig, template: ChatTemplate) -> FilterContext:
    section = config.collect
    if section.source != "endpoint":
        return FilterContext("", template.control_tokens)
    notes = TeacherNotes(config.episode, section.endpoint.tool_format).text()
    return FilterContext(notes, template.control_tokens)


def _spent(out: Path) -> Spending:
    """Return what the stored episodes took; what a kill interrupted is not in it."""
    total = Spending()
    reader = RunReader(out)
    for episode in episodes_of(reader, reader.episodes()):
        counts = {name: int(episode.extra.get(f"teacher_{name}", 0)) for name in _COUNTS}
        total.add(Spending(**counts))
    return total


_COUNTS = ("requests", "prompt_tokens", "completion_tokens")


def _show(kept: KeptFile, out: Path) -> None:
    """Print what was kept and what was not, by reason and by tag."""
    report = kept.report
    table = Table(title=f"{report['episodes']} episodes played", show_edge=False)
    table.add_column("")
    table.add_column("episodes", justify="right")
    table.add_row("kept", str(report["kept"]))
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
    console.print(f"the selection is in {kept_path(out)}", soft_wrap=True)
