"""The demonstration: a tiny model learns unfamiliar tools by trying them, on the real stack, in
minutes.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.config.run_config import RunConfig
from cluster.evaluation.evaluate import eval_tasks
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.opening import find_model, next_free, open_run
from cluster.progress import Progress
from cluster.running import run_async
from cluster.study.stages import measured, serving, taught, with_values
from cluster.training.job import Job, open_job
from cluster.training.train import reinforce
from envs.tools import JsonObject
from rollout.evaluation.summary import EvalSummary
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import EpisodeFilter, RunReader
from rollout.transcript import render

GREEDY, SAMPLED = "greedy", "T=1"


@dataclass(frozen=True, slots=True)
class Policy:
    """A row of the table: what it is called, and how it acts."""

    name: str
    mode: str
    trial_calls: int | None = None
    """None is the recipe's budget."""


DIRECT = Policy("direct SFT", "direct")
BLOCKED = Policy("trial SFT, trials blocked", "trial", 0)
TRIAL = Policy("trial SFT", "trial")
REINFORCED = Policy("trial SFT + GRPO", "trial")


def run_demo(config: RunConfig) -> JsonObject:
    """Run the demonstration and print its table and two episodes; returns the numbers."""
    if config.path.exists():
        free = next_free(Path(config.run.dir), config.run.name)
        config = with_values(config, "run", name=free.name)
    progress = Progress()
    with ray_session(config):
        results = run_async(_demonstrate(config, progress))
    console = Console(stderr=True)
    console.print(_table(results, len(eval_tasks(config))))
    for title, text in _two_episodes(_eval_path(config, REINFORCED, SAMPLED)):
        console.rule(title)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nEverything is in {config.path}: try  trialrun episodes {config.path}/train")
    return {
        "run_dir": str(config.path),
        "results": {f"{p.name}, {how}": s.to_json() for (p, how), s in results.items()},
    }


Results = Mapping[tuple[Policy, str], EvalSummary]


async def _demonstrate(config: RunConfig, progress: Progress) -> Results:
    base = find_model(config)
    progress.say(
        "the teacher plays, and two copies of the model imitate it: one with trials, one without"
    )
    async with asyncio.TaskGroup() as group:  # the direct model is done later, and needed last
        direct = group.create_task(_taught(config, base, "direct", progress))
        trial = await _taught(config, base, "trial", progress)
        return await _reinforced(config, trial, direct, progress)


async def _reinforced(
    config: RunConfig, trial: Path, direct: Awaitable[Path], progress: Progress
) -> Results:
    """Measure, reinforce and measure again, all with one pool."""
    results: dict[tuple[Policy, str], EvalSummary] = {}
    training = with_values(config, "model", path=str(trial))
    training = with_values(training, "run", dir=str(config.path), name="train")
    with open_run(training, progress, resume=False) as run:
        async with open_job(training, run) as job:
            progress.say("held-out tools before reinforcement")
            for policy in (BLOCKED, TRIAL):
                results |= await _measure(config, job, policy)
            progress.say(
                f"{training.run.steps} steps of GRPO with {training.rollouts.workers} vLLM workers"
            )
            await reinforce(job, progress)
            await job.learner.export_model(run.layout.model)
            progress.say("held-out tools after reinforcement")
            results |= await _measure(config, job, REINFORCED)
            async with serving(config, job.pool, await direct, training.run.steps + 1):
                results |= await _measure(config, job, DIRECT)
    return {
        key: results[key]
        for policy in (DIRECT, BLOCKED, TRIAL, REINFORCED)
        for key in results
        if key[0] is policy
    }


async def _taught(config: RunConfig, base: Path, mode: str, progress: Progress) -> Path:
    """Return the model after SFT on teacher episodes of `mode`."""
    config = with_values(config, "episode", mode=mode)
    if mode == "direct":  # fewer and shorter successes: a fair baseline sees as many tokens
        config = with_values(config, "teacher", episodes=2 * config.teacher.episodes)
        config = with_values(config, "sft", epochs=2 * config.sft.epochs)
    path = config.path / f"sft-{mode}"
    made = await taught(config, base, path)
    progress.say(f"{mode}: {made.line}")
    return RunLayout(path).model


async def _measure(
    config: RunConfig, job: Job, policy: Policy
) -> dict[tuple[Policy, str], EvalSummary]:
    """Evaluate what the pool serves on held-out tools, greedy and at temperature 1."""
    config = with_values(config, "episode", mode=policy.mode)
    if policy.trial_calls is not None:
        trial = config.episode.trial.model_copy(update={"calls": policy.trial_calls})
        config = with_values(config, "episode", trial=trial)
    tasks, found = eval_tasks(config), {}
    for how, temperature in ((GREEDY, 0.0), (SAMPLED, 1.0)):
        setting = with_values(config, "eval", temperature=temperature)
        path = _eval_path(config, policy, how)
        found[policy, how] = await measured(setting, job.pool, path, tasks)
    return found


def _eval_path(config: RunConfig, policy: Policy, how: str) -> Path:
    words = (
        f"{policy.name} {how}".replace("=", "").replace("+", "").replace(",", "").lower().split()
    )
    return config.path / "-".join(["eval", *words])


def _table(results: Results, tasks: int) -> Table:
    table = Table(title=f"Right answers with held-out tools ({tasks} tasks, mean ± standard error)")
    table.add_column("policy")
    for column in (GREEDY, SAMPLED, "trials per episode"):
        table.add_column(column, justify="right")
    for policy in dict.fromkeys(policy for policy, _ in results):
        greedy, sampled = results[policy, GREEDY], results[policy, SAMPLED]
        table.add_row(
            policy.name,
            _score(greedy),
            _score(sampled),
            f"{sampled.trial_calls_per_episode or 0:.1f}",
        )
    return table


def _score(summary: EvalSummary) -> str:
    if summary.accuracy is None or summary.stderr is None:
        return "-"
    return f"{summary.accuracy:.2f} ± {summary.stderr:.2f}"


def _two_episodes(run: Path) -> Sequence[tuple[str, str]]:
    """Return a failure and a success with trials of the run, each whole."""
    reader = RunReader(run)
    episodes = [reader.episode(row.episode) for row in reader.episodes(EpisodeFilter())]
    failed = [e for e in episodes if e.outcome.counts and e.reward_parts["answer"] < 1]
    solved = [
        e
        for e in episodes
        if e.outcome.counts and e.reward_parts["answer"] >= 1 and e.extra["trial_calls"] > 0
    ]
    shown = []
    if failed:
        shown.append(("a failure", render(failed[0])))
    if solved:
        shown.append(("a success", render(max(solved, key=lambda e: e.extra["trial_calls"]))))
    return shown
