"""The best accuracy that a policy without trials can reach in the settings of a study."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import cast

from cluster.study.graph import Results, Stage
from cluster.study.recipe import Study, changed
from envs.config import CatalogConfig
from envs.errors import ConfigError
from envs.tasksets.catalog.ceiling import Ceiling, ceiling
from envs.tools import JsonObject


def ceiling_stages(study: Study) -> Sequence[Stage]:
    """Return a stage for each setting in `study.ceilings`.

    Raises ConfigError where the environment's ceiling is unknown.
    """
    return [_stage(study, setting) for setting in study.section.ceilings]


def _stage(study: Study, setting: str) -> Stage:
    config = changed(study.config, setting, study.section.settings[setting])
    if config.env.name != "catalog":
        raise ConfigError(
            f"study.ceilings: the ceiling of {setting} is known for env.name = 'catalog' only, "
            f"found {config.env.name!r}: leave it out"
        )
    catalog, calls = config.env.catalog, config.episode.execution.calls
    tasks = study.section.ceiling_tasks

    async def estimate(folder: Path, results: Results) -> JsonObject:
        del folder, results
        with ProcessPoolExecutor(1, get_context("spawn")) as process:  # the search takes minutes
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(process, _ceiling, catalog, calls, tasks)
        return {"setting": setting, **cast(JsonObject, asdict(found))}

    inputs = {"catalog": catalog.model_dump(mode="json"), "calls": calls, "tasks": tasks}
    return Stage(setting, (), inputs, estimate)


def _ceiling(catalog: CatalogConfig, calls: int, tasks: int) -> Ceiling:
    return ceiling(catalog, calls, tasks)
