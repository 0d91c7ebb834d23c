"""One pool of workers that evaluates several models, one after the other."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.evaluation.evaluate import check_evaluation, evaluate
from cluster.fleet.open_pool import open_pool
from cluster.fleet.pool import RolloutPool
from cluster.fleet.weight_relay import place_here
from cluster.lifecycle.inputs import with_recording
from cluster.progress import QUIET, Progress
from envs.tasks import Task
from learner.outputs.publish import SharedMemoryPublisher
from learner.pretrained.folder import folder_weights
from rollout.evaluation.summary import EvalSummary
from rollout.weights.layout import checkpoint_layout


class EvalPool:
    """The evaluation pool of a seed: it starts with the first model, later ones are pushed to it.

    It serves several run directories. What its tool servers record lies in its own folder, and
    `recording` notes that folder in the recipe of each evaluation, where replay looks for it.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._open = AsyncExitStack()
        self._published = AsyncExitStack()
        self._pool: RolloutPool | None = None
        self._model: Path | None = None
        self._pushes = 0

    def recording(self, config: RunConfig) -> RunConfig:
        """Return `config` with the folder in which this pool records tool calls, if it does."""
        return with_recording(config, self._folder)

    async def serve(self, model: Path) -> RolloutPool:
        """Return a pool that serves the weights in folder `model`."""
        config = self._config
        if self._pool is None:
            pool = open_pool(config, model, self._folder)
            self._pool = await self._open.enter_async_context(pool)
            await self._pool.wait_healthy(self._pool.desired)
        elif self._model != model:
            await self._published.aclose()
            self._pushes += 1
            serving_model = serving(config, self._pool, model, self._pushes)
            await self._published.enter_async_context(serving_model)
        self._model = model
        return self._pool

    async def close(self) -> None:
        """Stop the pool, if it was started."""
        await self._published.aclose()
        await self._open.aclose()
        self._pool = None


@asynccontextmanager
async def serving(
    config: RunConfig, pool: RolloutPool, model: Path, version: int
) -> AsyncIterator[None]:
    """Let the pool's engines serve the weights in folder `model`, as policy `version`."""
    layout = checkpoint_layout(str(model), config.model.dtype)
    publisher = SharedMemoryPublisher(Path(config.cluster.shm_dir), layout)
    here = place_here(config.cluster.shm_dir)
    try:
        manifest = publisher.publish(version, folder_weights(model))
        await pool.load_weights(replace(manifest, place=here))
        yield
    finally:
        publisher.close()


async def measure(
    config: RunConfig,
    pool: RolloutPool,
    path: Path,
    tasks: Sequence[Task],
    progress: Progress = QUIET,
) -> EvalSummary:
    """Evaluate what the pool serves in the run directory `path`, which is resumed if it exists."""
    opening = check_evaluation(config, path, tasks)
    with opening.open(progress) as run:
        return await evaluate(config, pool, run, tasks, progress)
