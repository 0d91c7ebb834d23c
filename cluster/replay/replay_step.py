"""Run a learner step again on its recorded episodes and compare the result bit for bit."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.fleet.learner_group import LearnerGroup
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.inputs import find_model
from cluster.lifecycle.retention import whole_checkpoints
from cluster.lifecycle.stored_config import stored_config
from cluster.lifecycle.trust import reading_of
from cluster.older_metrics import is_older, read_metrics
from cluster.progress import Progress
from cluster.running import run_async
from envs.errors import ConfigError, MissingError
from envs.tools import JsonObject
from learner.outputs.digest import PUSHED_METRIC, push_metrics, recorded_digests
from learner.report import StepReport
from learner.signing import Signing
from rollout.episode_difference import EpisodeDifference
from rollout.store.run_reader import RunReader

KERNELS = ("torch", "deepspeed", "transformers")
"""Packages that may round differently in another version."""
TIMINGS = frozenset({"seconds", "sequence_tokens_per_s"})
"""Metrics of the learner that are not compared."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run directory holds of one step."""

    step: int
    table: pa.Table
    """The episodes, in the order in which the learner received them."""
    annotations: pa.Table
    metrics: Mapping[str, float]

    @property
    def has_whole_digests(self) -> bool:
        """Whether every tensor of the whole model was hashed after the step."""
        return bool(recorded_digests(self.annotations))

    @property
    def has_pushed_digest(self) -> bool:
        """Whether the metrics have the hash of the weights that were pushed to the engines."""
        return PUSHED_METRIC in self.metrics

    def compared_weights(self, *, lora: bool) -> str:
        """Return which weights after the step can be compared, for people."""
        pushed = "the pushed LoRA factors" if lora else "the pushed weights"
        if self.has_whole_digests and self.has_pushed_digest:
            return f"every tensor of the whole model, and {pushed} together"
        if self.has_whole_digests:
            return "every tensor of the whole model"
        if self.has_pushed_digest:
            return f"{pushed} together, by one hash"
        return (
            f"none: step {self.step} has no digest, as with cluster.transport = 'cuda_ipc' between "
            "checkpoints; set run.deterministic or run.checkpoint_every = 1 for whole digests"
        )

    def differences(self, report: StepReport) -> Iterator[EpisodeDifference]:
        """Yield the first tensor, metric and annotation in which the replayed step differs."""
        assert report.annotations is not None
        yield from _first(
            "weights of", recorded_digests(self.annotations), recorded_digests(report.annotations)
        )
        recorded = read_metrics(self.metrics)
        names = sorted(report.metrics.keys() - TIMINGS)
        if is_older(self.metrics):
            # An older version measured less, and some numbers over something else.
            names = [name for name in names if name in recorded]
        new = {n: report.metrics[n] if math.isfinite(report.metrics[n]) else None for n in names}
        yield from _first("metric", {name: recorded.get(name) for name in names}, new)
        yield from _annotations(self.annotations, report.annotations)


@dataclass(frozen=True, slots=True)
class StepReplay:
    """Result of running a step again, together with all steps since `base`.

    `step` is the last step that was run: the first that differs, or the requested one.
    """

    step: int
    base: str
    steps: int
    episodes: int
    weights: str
    """Which weights after `step` were compared."""
    differences: tuple[EpisodeDifference, ...]

    def to_json(self) -> JsonObject:
        """Return the verdict, what was compared, and the first difference of every kind."""
        verdict: JsonObject = {
            "verdict": "different" if self.differences else "equal, bit for bit",
            "step": self.step,
            "from": self.base,
            "steps_replayed": self.steps,
            "episodes": self.episodes,
            "weights_compared": self.weights,
        }
        for found in self.differences:
            verdict[found.where] = f"recorded {found.recorded}, replayed {found.replayed}"
        return verdict


def run_replay_step(run: Path, step: int, *, trusted: bool = False) -> StepReplay:
    """As `replay_step`, with Ray for as long as it takes."""
    progress = Progress()
    reading_of_step(RunReader(run), step, trusted=trusted)  # before anything starts
    progress.phase("starting Ray and the learner")
    with ray_session(stored_config(RunReader(run).layout.config_toml)):
        return run_async(replay_step(run, step, progress, trusted=trusted))


async def replay_step(
    run: Path, step: int, progress: Progress, *, trusted: bool = False
) -> StepReplay:
    """Replay learner step `step` of a run, from the nearest checkpoint before it.

    Raises MissingError where the step, its episodes or its model are missing; ConfigError where a
    package that computes has another version than the run was started with, and for a run of
    somebody else whose recipe could do harm; StoreError for their checkpoints. `trusted` allows
    both.
    """
    reader = RunReader(run)
    refuse_other_versions(reader.info.versions)
    base = nearest_checkpoint(reader, step)
    first = int(base.name) + 1 if base else 1
    config = stored_config(recipe_of(reader, first, step))
    signing = reading_of_step(reader, step, trusted=trusted)
    steps = [recorded_step(reader, number) for number in range(first, step + 1)]
    learner = LearnerGroup(config, str(find_model(config)), signing=signing)
    return await _replay(learner, config, base, steps, progress)


def reading_of_step(reader: RunReader, step: int, *, trusted: bool) -> Signing:
    """Return how the checkpoint before `step` is checked. Raises as `replay_step` does."""
    base = nearest_checkpoint(reader, step)
    recipe = recipe_of(reader, int(base.name) + 1 if base else 1, step)
    return reading_of(reader.layout, recipe, stored_config(recipe), base, trusted=trusted)


async def _replay(
    learner: LearnerGroup,
    config: RunConfig,
    base: Path | None,
    steps: list[Recorded],
    progress: Progress,
) -> StepReplay:
    came_from = f"checkpoint {base.name}" if base else "the initial model"
    try:
        await learner.start()
        if base is not None:
            await learner.load_checkpoint(base)
        for count, recorded in enumerate(steps, start=1):
            report = await _repeat(learner, recorded)
            found = tuple(recorded.differences(report))
            compared = recorded.compared_weights(lora=config.model.lora.rank > 0)
            outcome = "different" if found else "equal"
            progress.say(f"step {recorded.step}: {outcome} (weights compared: {compared})")
            if found or recorded is steps[-1]:
                rows = recorded.table.num_rows
                return StepReplay(recorded.step, came_from, count, rows, compared, found)
    finally:
        await learner.close()
    raise AssertionError("expected at least one step to replay")


async def _repeat(learner: LearnerGroup, recorded: Recorded) -> StepReport:
    """Run a step with the digests that its record has: each costs time, and memory for a push."""
    report = await learner.rl_step(recorded.table, digest_weights=recorded.has_whole_digests)
    if not recorded.has_pushed_digest:
        return report
    pushed = push_metrics(await learner.publish_weights(recorded.step))
    return replace(report, metrics=report.metrics | pushed)


def refuse_other_versions(recorded: Mapping[str, str]) -> None:
    """Raise ConfigError where a package of KERNELS has another version than the recorded one."""
    for name in KERNELS:
        if name in recorded and version(name) != recorded[name]:
            raise ConfigError(
                f"expected {name} {recorded[name]}, which the run was started with, found "
                f"{version(name)}: another version may round differently; install the run's"
            )


def recipe_of(reader: RunReader, first: int, last: int) -> Path:
    """Return the recipe of the steps from `first` to `last`. Raises ConfigError if it changed."""
    recipe = reader.layout.config_of(last)
    if recipe != reader.layout.config_of(first):
        raise ConfigError(
            f"the run was resumed with another recipe between the steps {first} and {last}, from a "
            "checkpoint that was removed: raise run.keep_checkpoints to replay such steps"
        )
    return recipe


def nearest_checkpoint(reader: RunReader, step: int) -> Path | None:
    """Return the newest checkpoint before `step`; None is the initial model.

    Raises MissingError for a step below 1.
    """
    if step < 1:
        raise MissingError(f"expected a step of at least 1 (steps count from 1), found {step}")
    before = [p for p in whole_checkpoints(reader.layout.checkpoints) if int(p.name) < step]
    return max(before, default=None)


def recorded_step(reader: RunReader, step: int) -> Recorded:
    """Return what the run recorded of `step`.

    Raises MissingError where the step was not trained or its episodes were removed.
    """
    metrics = {row.step: row.values for row in reader.metrics()}
    if step not in metrics:
        trained = f"steps {min(metrics)} to {max(metrics)}" if metrics else "none"
        raise MissingError(
            f"expected a step that {reader.layout.root} has trained, found {trained}, not {step}"
        )
    annotations = reader.annotations(step)
    entries = reader.ledger().entries
    wanted = [(name, entries[name].lease.attempt) for name in annotations["episode"].to_pylist()]
    rows = {(row.episode, row.attempt): row for row in reader.episodes()}
    lost = [episode for episode, attempt in wanted if (episode, attempt) not in rows]
    if lost:
        raise MissingError(
            f"expected the {len(wanted)} episodes of step {step} in {reader.layout.root}, "
            f"{len(lost)} are missing, such as {lost[0]}: without them no step from here to the "
            "next checkpoint can be replayed; restore the folder episodes/"
        )
    table = pa.Table.from_batches([reader.batch([rows[key] for key in wanted])])
    return Recorded(step, table, annotations, metrics[step])


def _first(
    kind: str, old: Mapping[str, object], new: Mapping[str, object]
) -> Iterator[EpisodeDifference]:
    """Yield the first name whose value differs or is missing on one side."""
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            yield EpisodeDifference(
                where=f"{kind} {name}", recorded=str(old.get(name)), replayed=str(new.get(name))
            )
            return


def _annotations(old: pa.Table, new: pa.Table) -> Iterator[EpisodeDifference]:
    """Yield the first column and episode whose bits differ."""
    for name in old.column_names:
        pairs = zip(old[name].to_pylist(), new[name].to_pylist(), strict=True)
        for episode, (before, after) in zip(old["episode"].to_pylist(), pairs, strict=True):
            if not _same(before, after):
                yield EpisodeDifference(
                    where=f"{name} of {episode}",
                    recorded=str(before)[:80],
                    replayed=str(after)[:80],
                )
                return


def _same(before: object, after: object) -> bool:
    if isinstance(before, list):
        return np.array_equal(np.array(before), np.array(after), equal_nan=True)
    return before == after
