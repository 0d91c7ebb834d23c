"""The best accuracy that a policy without trials can reach in the settings of a study, if it gets
its texts from tools (docs/catalog.md says what that leaves out).
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import cast

from cluster.config.environments import environment_of
from cluster.study.graph import Results, Stage
from cluster.study.recipe import Study, changed
from envs.config import EnvConfig
from envs.errors import ConfigError
from envs.tools import JsonObject


def ceiling_stages(study: Study) -> Sequence[Stage]:
    """Return a stage for each setting in `study.ceilings`.

    Raises ConfigError where the environment's ceiling is unknown.
    """
    return [_stage(study, setting) for setting in study.section.ceilings]


def _stage(study: Study, setting: str) -> Stage:
    config = changed(study.config, setting, study.section.settings[setting])
    estimate_ceiling = environment_of(config).ceiling
    if estimate_ceiling is None:
        raise ConfigError(
            f"study.ceilings: no ceiling is known for env.name = {config.env.name!r} with "
            f"env.perturbation = {config.env.perturbation!r}: leave out {setting}"
        )
    calls, tasks = config.episode.execution.calls, study.section.ceiling_tasks

    async def estimate(folder: Path, results: Results) -> JsonObject:
        del folder, results
        with ProcessPoolExecutor(1, get_context("spawn")) as process:  # the search takes minutes
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(process, estimate_ceiling, calls, tasks)
        return {"setting": setting, "tasks": tasks, **cast(JsonObject, asdict(found))}

    own_keys = config.env.model_dump(mode="json", exclude=set(EnvConfig.model_fields))
    inputs: JsonObject = {**own_keys, "calls": calls, "tasks": tasks}
    return Stage(setting, (), inputs, estimate)
