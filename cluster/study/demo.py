"""The demonstration: a tiny model learns unfamiliar tools by trying them, on the real stack, in
minutes.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.config.run_config import RunConfig
from cluster.evaluation.text_table import with_interval
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.inputs import RunInputs, find_model, resolve_inputs, with_recording
from cluster.lifecycle.model_checks import check_model
from cluster.lifecycle.opening import Resume, check_run, next_free
from cluster.progress import Progress
from cluster.running import run_async
from cluster.scheduling.task_sources import eval_tasks
from cluster.study.eval_pool import measure, serving
from cluster.study.stages import sft_from_teacher, with_values
from cluster.training.job import Job, open_job
from cluster.training.train import train_steps
from envs.tasks import Environment
from envs.tools import JsonObject
from rollout.episode import ANSWER_PART, is_correct
from rollout.evaluation.intervals import Interval
from rollout.evaluation.summary import EvalSummary
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import EpisodeFilter, RunReader
from rollout.transcript import render

GREEDY, SAMPLED = "greedy", "T=1"


@dataclass(frozen=True, slots=True)
class Policy:
    """A row of the table: a policy's name, mode and trial budget."""

    name: str
    mode: str
    trial_calls: int | None = None
    """None is the recipe's budget."""


DIRECT = Policy("direct SFT", "direct")
BLOCKED = Policy("trial SFT, trials blocked", "trial", 0)
TRIAL = Policy("trial SFT", "trial")
TRAINED = Policy("trial SFT + GRPO", "trial")


def with_free_name(config: RunConfig) -> RunConfig:
    """Return `config` with the name of a folder that does not exist yet."""
    if not config.path.exists():
        return config
    free = next_free(Path(config.run.dir), config.run.name)
    return with_values(config, "run", name=free.name)


def run_demo(config: RunConfig) -> JsonObject:
    """Run the demonstration and print its table and two episodes; returns the numbers."""
    config = with_free_name(config)
    progress = Progress()
    progress.phase("building the model")
    inputs = resolve_inputs(config)
    check_model(config, inputs.model)
    progress.phase(f"starting Ray; everything goes to {config.path.resolve()}")
    with ray_session(config):
        results = run_async(_demonstrate(inputs, progress))
    console = Console(stderr=True)
    console.print(_table(results))
    for title, text in _two_episodes(_eval_path(config, TRAINED, SAMPLED)):
        console.rule(title)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"\nEverything is in {config.path}: try  trialrun dashboard {config.path}  or  trialrun "
        f"episodes {config.path}/train",
        soft_wrap=True,
    )
    return {
        "run_dir": str(config.path),
        "results": {f"{p.name}, {how}": s.to_json() for (p, how), s in results.items()},
    }


Results = Mapping[tuple[Policy, str], EvalSummary]


async def _demonstrate(inputs: RunInputs, progress: Progress) -> Results:
    progress.say(
        "the teacher generates episodes, and SFT trains two copies of the model on them: one with "
        "trials, one without"
    )
    async with asyncio.TaskGroup() as group:  # the direct model takes longer and is needed last
        direct = group.create_task(_sft_model(inputs, "direct", progress))
        trial = await _sft_model(inputs, "trial", progress)
        return await _train_and_measure(inputs, trial, direct, progress)


async def _train_and_measure(
    inputs: RunInputs, trial: Path, direct: Awaitable[Path], progress: Progress
) -> Results:
    """Evaluate, train with GRPO and evaluate again, all with one pool."""
    config = inputs.config
    results: dict[tuple[Policy, str], EvalSummary] = {}
    training = with_values(config, "model", path=str(trial))
    training = with_values(training, "run", dir=str(config.path), name="train")
    rl_inputs = replace(inputs, config=training, model=find_model(training))
    progress.phase(f"starting the learner and {training.rollouts.workers} vLLM workers")
    opening = check_run(RunKind.TRAIN, training.path, training, Resume.NO)
    with opening.open(progress) as run:
        async with open_job(rl_inputs, run) as job:
            measuring = _Measuring(
                with_recording(config, run.path), inputs.environment, job, progress
            )
            progress.phase("evaluating on held-out tools before RL")
            for policy in (BLOCKED, TRIAL):
                results |= await measuring.measure(policy)
            progress.say(
                f"{training.run.steps} steps of GRPO with {training.rollouts.workers} vLLM workers"
            )
            await train_steps(job, progress)
            await job.learner.export_model(run.layout.model)
            progress.phase("evaluating on held-out tools after RL")
            results |= await measuring.measure(TRAINED)
            async with serving(config, job.pool, await direct, training.run.steps + 1):
                results |= await measuring.measure(DIRECT)
    return {
        key: results[key]
        for policy in (DIRECT, BLOCKED, TRIAL, TRAINED)
        for key in results
        if key[0] is policy
    }


async def _sft_model(inputs: RunInputs, mode: str, progress: Progress) -> Path:
    """Return the model after SFT on teacher episodes of `mode`."""
    config = with_values(inputs.config, "episode", mode=mode)
    if mode == "direct":  # its episodes are shorter and fewer succeed: see as many tokens
        config = with_values(config, "teacher", episodes=2 * config.teacher.episodes)
        config = with_values(config, "sft", epochs=2 * config.sft.epochs)
    path = config.path / f"sft-{mode}"
    made = await sft_from_teacher(replace(inputs, config=config), path, progress.named(mode))
    progress.say(f"{mode}: {made.line}")
    return RunLayout(path).model


@dataclass(frozen=True, slots=True)
class _Measuring:
    """Evaluates what a job's pool serves on held-out tools, greedy and at temperature 1."""

    config: RunConfig
    environment: Environment
    job: Job
    progress: Progress

    async def measure(self, policy: Policy) -> dict[tuple[Policy, str], EvalSummary]:
        config = with_values(self.config, "episode", mode=policy.mode)
        if policy.trial_calls is not None:
            trial = config.episode.trial.model_copy(update={"calls": policy.trial_calls})
            config = with_values(config, "episode", trial=trial)
        tasks, found = eval_tasks(config, self.environment), {}
        for how, temperature in ((GREEDY, 0.0), (SAMPLED, 1.0)):
            setting = with_values(config, "eval", temperature=temperature)
            path = _eval_path(config, policy, how)
            named = self.progress.named(f"{policy.name}, {how}")
            found[policy, how] = await measure(setting, self.job.pool, path, tasks, named)
        return found


def _eval_path(config: RunConfig, policy: Policy, how: str) -> Path:
    words = (
        f"{policy.name} {how}".replace("=", "").replace("+", "").replace(",", "").lower().split()
    )
    return config.path / "-".join(["eval", *words])


def _table(results: Results) -> Table:
    tasks = max(summary.tasks for summary in results.values())
    table = Table(title=f"Accuracy on held-out tools ({tasks} tasks, [95 % interval] over tasks)")
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
    if summary.accuracy is None:
        return "-"
    interval = Interval(summary.accuracy_low, summary.accuracy_high, summary.accuracy_method)
    return with_interval(summary.accuracy, interval, summary.tasks, ".2f")


def _two_episodes(run: Path) -> Sequence[tuple[str, str]]:
    """Return a failed episode of the run and a successful one with trials, as text."""
    reader = RunReader(run)
    episodes = [reader.episode(row.episode) for row in reader.episodes(EpisodeFilter())]
    counted = [(e, is_correct(e.reward_parts[ANSWER_PART])) for e in episodes if e.outcome.counts]
    failed = [e for e, correct in counted if not correct]
    solved = [e for e, correct in counted if correct and e.extra["trial_calls"] > 0]
    shown = []
    if failed:
        shown.append(("a failure", render(failed[0])))
    if solved:
        shown.append(("a success", render(max(solved, key=lambda e: e.extra["trial_calls"]))))
    return shown
