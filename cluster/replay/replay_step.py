"""A learner step run again from the episodes it was made of, and compared bit for bit."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.config.run_config import RunConfig, load_config
from cluster.fleet.learner_group import LearnerGroup
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.opening import find_model
from cluster.lifecycle.retention import whole_checkpoints
from cluster.progress import Progress
from cluster.running import run_async
from envs.errors import ConfigError, MissingError
from envs.tools import JsonObject
from learner.outputs.digest import recorded_digests
from learner.report import StepReport
from rollout.episode_difference import Difference
from rollout.store.run_reader import RunReader

KERNELS = ("torch", "deepspeed", "transformers")
"""Packages whose other versions may round otherwise."""
TIMINGS = frozenset({"seconds", "tokens_per_s"})
"""Metrics of the learner that are no part of the comparison."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run directory says of one step."""

    step: int
    table: pa.Table
    """The episodes, in the order in which the learner was given them."""
    annotations: pa.Table
    metrics: Mapping[str, float]

    def differences(self, report: StepReport) -> Iterator[Difference]:
        """Yield where the step that was run again differs: first tensor, metric, annotation."""
        assert report.annotations is not None
        yield from _first(
            "weights of", recorded_digests(self.annotations), recorded_digests(report.annotations)
        )
        names = sorted(report.metrics.keys() - TIMINGS)
        new = {n: report.metrics[n] if math.isfinite(report.metrics[n]) else None for n in names}
        yield from _first("metric", {name: self.metrics.get(name) for name in names}, new)
        yield from _annotations(self.annotations, report.annotations)


@dataclass(frozen=True, slots=True)
class StepReplay:
    """What came of running a step again, and with it all steps since `base`.

    `step` is the last that was run: the first that differs, or the one that was asked for.
    """

    step: int
    base: str
    steps: int
    episodes: int
    differences: tuple[Difference, ...]

    def to_json(self) -> JsonObject:
        """Return the verdict, and the first difference of every kind."""
        verdict: JsonObject = {
            "verdict": "different" if self.differences else "equal, bit for bit",
            "step": self.step,
            "from": self.base,
            "steps_replayed": self.steps,
            "episodes": self.episodes,
        }
        for found in self.differences:
            verdict[found.where] = f"recorded {found.recorded}, replayed {found.replayed}"
        return verdict


def run_replay_step(run: Path, step: int) -> StepReplay:
    """As `replay_step`, with Ray for as long as it takes."""
    with ray_session(load_config(str(RunReader(run).layout.config_toml))):
        return run_async(replay_step(run, step, Progress()))


async def replay_step(run: Path, step: int, progress: Progress) -> StepReplay:
    """Run learner step `step` of a run again, from the nearest checkpoint before it.

    Raises MissingError for a step, its episodes or its model that are not there; ConfigError where
    another version of what computes is installed than the run began with.
    """
    reader = RunReader(run)
    refuse_other_versions(reader.run.versions)
    base = nearest_checkpoint(reader, step)
    first = int(base.name) + 1 if base else 1
    config = load_config(str(recipe_of(reader, first, step)))
    steps = [recorded_step(reader, number) for number in range(first, step + 1)]
    return await _replay(config, base, steps, progress)


async def _replay(
    config: RunConfig, base: Path | None, steps: list[Recorded], progress: Progress
) -> StepReplay:
    learner = LearnerGroup(config, str(find_model(config)))
    came_from = f"checkpoint {base.name}" if base else "the initial model"
    try:
        await learner.start()
        if base is not None:
            await learner.load_checkpoint(base)
        for count, recorded in enumerate(steps, start=1):
            report = await learner.rl_step(recorded.table)
            found = tuple(recorded.differences(report))
            progress.say(f"step {recorded.step}: {'different' if found else 'equal'}")
            if found or recorded is steps[-1]:
                return StepReplay(recorded.step, came_from, count, recorded.table.num_rows, found)
    finally:
        await learner.close()
    raise AssertionError("a step is replayed from an earlier one")


def refuse_other_versions(recorded: Mapping[str, str]) -> None:
    """Raise ConfigError where what computes is not what the run began with."""
    for name in KERNELS:
        if name in recorded and version(name) != recorded[name]:
            raise ConfigError(
                f"expected {name} {recorded[name]}, which the run was started with, found "
                f"{version(name)}: another version may round otherwise; install the run's"
            )


def recipe_of(reader: RunReader, first: int, last: int) -> Path:
    """Return the recipe of the steps from `first` to `last`. Raises ConfigError for several."""
    recipe = reader.layout.config_of(last)
    if recipe != reader.layout.config_of(first):
        raise ConfigError(
            f"the run went on with another recipe between the steps {first} and {last}, from a "
            "checkpoint that is gone: raise run.keep_checkpoints to run such steps again"
        )
    return recipe


def nearest_checkpoint(reader: RunReader, step: int) -> Path | None:
    """Return the newest checkpoint before `step`; None is the initial model.

    Raises MissingError for a step that cannot be.
    """
    if step < 1:
        raise MissingError(f"expected a step, which count from 1, found {step}")
    before = [p for p in whole_checkpoints(reader.layout.checkpoints) if int(p.name) < step]
    return max(before, default=None)


def recorded_step(reader: RunReader, step: int) -> Recorded:
    """Return what the run says of `step`.

    Raises MissingError where it holds not all of it any more, or never did.
    """
    metrics = {row.step: row.values for row in reader.metrics()}
    if step not in metrics:
        trained = f"steps {min(metrics)} to {max(metrics)}" if metrics else "none"
        raise MissingError(
            f"expected a step that {reader.layout.root} has trained, found {trained}, not {step}"
        )
    annotations = reader.annotations(step)
    if not recorded_digests(annotations):
        raise MissingError(
            f"expected digests of the weights after step {step}, found none: the run was made by a "
            "trialrun that did not record them"
        )
    entries = reader.ledger().entries
    wanted = [(name, entries[name].lease.attempt) for name in annotations["episode"].to_pylist()]
    rows = {(row.episode, row.attempt): row for row in reader.episodes()}
    lost = [episode for episode, attempt in wanted if (episode, attempt) not in rows]
    if lost:
        raise MissingError(
            f"expected the {len(wanted)} episodes of step {step} in {reader.layout.root}, "
            f"{len(lost)} are gone, such as {lost[0]}: were they cleaned up? Without them no step "
            "from here to the next checkpoint can be run again"
        )
    table = pa.Table.from_batches([reader.batch([rows[key] for key in wanted])])
    return Recorded(step, table, annotations, metrics[step])


def _first(kind: str, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[Difference]:
    """Yield the first name whose value differs or is missing on one side."""
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            yield Difference(f"{kind} {name}", str(old.get(name)), str(new.get(name)))
            return


def _annotations(old: pa.Table, new: pa.Table) -> Iterator[Difference]:
    """Yield the first column and episode whose bits differ."""
    for name in old.column_names:
        pairs = zip(old[name].to_pylist(), new[name].to_pylist(), strict=True)
        for episode, (before, after) in zip(old["episode"].to_pylist(), pairs, strict=True):
            if not _same(before, after):
                yield Difference(f"{name} of {episode}", str(before)[:80], str(after)[:80])
                return


def _same(before: object, after: object) -> bool:
    if isinstance(before, list):
        return np.array_equal(np.array(before), np.array(after), equal_nan=True)
    return before == after
