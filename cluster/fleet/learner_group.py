"""The ranks of the learner behind one object; every wait has a deadline."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyarrow as pa
import ray

from cluster.config.run_config import RunConfig
from cluster.fleet.health.node_guard import NodeGuards
from cluster.fleet.health.rank_signs import RankSigns
from cluster.fleet.learner_actor import LearnerActor
from cluster.fleet.ray_errors import RemoteCall, answer_of
from cluster.fleet.shared_folder import ask, check_answers, withdraw
from cluster.lifecycle.inputs import anywhere
from envs.errors import LearnerError, LearnerLostError, TrialrunError
from learner.config import SftConfig
from learner.report import StepReport
from learner.signing import Signing
from learner.trainer_setup import TrainerSetup
from rollout.weights.manifest import WeightManifest

_CLOSE_S = 10.0
"""Time for the ranks to close. One that computes answers only after it, and an SFT may take hours;
the next run removes the weight files that a killed rank leaves behind.
"""
_WATCH_EVERY_S = 2.0
"""Interval of health checks, and of looks at the processes of ranks."""
_DEATH_S = 10.0
"""Time for Ray to notice that a rank is dead, after another rank failed because of it."""

_ADVICE = "continue with --resume"

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class LearnerGroup:
    """All ranks of the learner, called together."""

    def __init__(
        self,
        config: RunConfig,
        model_path: str,
        sft: SftConfig | None = None,
        signing: Signing | None = None,
    ) -> None:
        """Reserve the ranks. With `sft` they train on demonstrations, else with RL."""
        section = config.cluster
        self._config = config
        self._model_path = model_path
        self._sft = sft
        self._signing = signing or Signing()
        self._gpu = section.gpus_per_rank > 0
        remote: Any = ray.remote(LearnerActor)
        options = remote.options(
            num_cpus=section.cpus_per_rank,
            num_gpus=section.gpus_per_rank,
            runtime_env={"env_vars": learner_environment(gpu=self._gpu)},
        )
        self._ranks: list[Any] = [
            options.remote(section.transport, section.shm_dir) for _ in range(config.learner.ranks)
        ]
        self._places: list[tuple[str, int]] = []
        """Node and process of each rank, once it has started."""
        self._guards = NodeGuards()
        self._lost = False

    async def check_folder(self, run: Path) -> None:
        """Check that every rank has the driver's run directory `run` and model at their paths.

        Raises ConfigError, which names the ranks that do not, and LearnerError.
        """
        question = await asyncio.to_thread(ask, run.absolute(), Path(self._model_path))
        try:
            calls = [
                _call(rank, LearnerActor.look, question, index)
                for index, rank in enumerate(self._ranks)
            ]
            answers = await self._answers(calls, "look at the run directory")
            await asyncio.to_thread(check_answers, question, answers)
        finally:
            withdraw(question)

    async def start(self) -> None:
        """Load the model on every rank; they meet at rank 0's node. Raises LearnerError."""
        placing = [_call(rank, LearnerActor.place) for rank in self._ranks]
        self._places = await self._answers(placing, "place")
        meeting = _call(self._ranks[0], LearnerActor.rendezvous)
        ((address, port),) = await self._answers([meeting], "rendezvous")
        starting = [
            _call(rank, LearnerActor.start, self._setup(index, address, port))
            for index, rank in enumerate(self._ranks)
        ]
        await self._answers(starting, "start")

    async def rl_step(self, table: pa.Table, *, digest_weights: bool = False) -> StepReport:
        """Make one RL step on the episodes of `table`. Raises LearnerError.

        With `digest_weights` the report has a digest of every weight of the whole model.
        """
        stored = await _put(table)
        return (await self._all(LearnerActor.rl_step, stored, digest_weights=digest_weights))[0]

    async def sft(
        self, table: pa.Table, seed: int, checkpoints: Path, steps_done: int = 0
    ) -> AsyncIterator[dict[str, float]]:
        """Train on the demonstrations in `table`; yield the metrics of each optimizer step.

        Checkpoints go to the folder `checkpoints`; `steps_done` is the step of the loaded one. The
        learner's deadline is for one step. Raises LearnerError.
        """
        arguments = (await _put(table), seed, steps_done, str(checkpoints.absolute()))
        streams = [
            rank.sft.options(num_returns="streaming").remote(*arguments) for rank in self._ranks
        ]
        while True:
            metrics = (await self._answers([_next(stream) for stream in streams], "sft"))[0]
            if metrics is None:
                return
            yield metrics

    async def publish_weights(self, version: int) -> WeightManifest:
        """Publish the current weights as `version`. Raises LearnerError, WeightSyncError."""
        manifest = (await self._all(LearnerActor.publish_weights, version))[0]
        assert manifest is not None, "rank 0 returns it"
        return manifest

    async def save_checkpoint(self, path: Path, step: int) -> None:
        await self._all(LearnerActor.save_checkpoint, str(path.absolute()), step)

    async def load_checkpoint(self, path: Path) -> int:
        """Continue from a checkpoint; return its step."""
        return (await self._all(LearnerActor.load_checkpoint, str(path.absolute())))[0]

    async def export_model(self, path: Path) -> None:
        """Write the weights as a Hugging Face folder, replacing what an earlier run wrote."""
        shutil.rmtree(path, ignore_errors=True)
        await self._all(LearnerActor.export_model, str(path.absolute()))

    async def logprobs(self, table: pa.Table) -> list[Any]:
        """Return per episode the logprobs (T,) of its sampled tokens under the current weights."""
        return (await self._all(LearnerActor.logprobs, await _put(table)))[0]

    async def watch(self) -> None:
        """Return never. Raises LearnerLostError within 10 seconds after a rank's process died or
        was stopped, or its node was lost, whether the rank works or not.
        """
        asking = asyncio.create_task(self._ask_ranks())
        looking = asyncio.create_task(self._look_at_ranks())
        try:
            await asyncio.wait({asking, looking}, return_when=asyncio.FIRST_COMPLETED)
            (asking if asking.done() else looking).result()
        except LearnerLostError:
            self._lost = True
            raise
        finally:
            for task in (asking, looking):
                task.cancel()
            await asyncio.gather(asking, looking, return_exceptions=True)

    async def _ask_ranks(self) -> None:
        """A busy rank answers later, so nothing but its death makes a health check fail."""
        while True:
            await self._pings(timeout_s=None)
            await asyncio.sleep(_WATCH_EVERY_S)

    async def _look_at_ranks(self) -> None:
        signs = RankSigns(self._places)
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            looks = [self._guards.look(node, pids) for node, pids in signs.nodes.items()]
            for node, vitals in zip(signs.nodes, await asyncio.gather(*looks), strict=True):
                signs.note(node, vitals)
            if lost := signs.lost():
                raise LearnerLostError(f"learner {lost}; {_ADVICE}")
            await asyncio.sleep(max(began + _WATCH_EVERY_S - clock(), 0))

    async def describe(self) -> str:
        """Return in words what the processes of the ranks do."""
        signs, said = RankSigns(self._places), list[str]()
        for node, pids in signs.nodes.items():
            vitals = await self._guards.look(node, pids)
            said += [signs.describe(node, pid, index, vitals) for index, pid in enumerate(pids)]
        return f"{'; '.join(said)}." if said else "Its ranks have not started."

    async def close(self) -> None:
        """Let idle ranks release their resources, then end all; lost ones are not waited for."""
        if not self._lost:
            with suppress(TrialrunError, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._all(LearnerActor.close)
        for rank in self._ranks:
            ray.kill(rank)
        if self._lost:  # Ray cannot end a process that is stopped
            ends = [self._guards.end(node, pid) for node, pid in self._places]
            await asyncio.gather(*ends)

    async def _all(
        self,
        method: Callable[Concatenate[LearnerActor, Arguments], Answer],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> list[Answer]:
        """Call `method` on every rank; return the answers in rank order."""
        calls = [_call(rank, method, *arguments, **named) for rank in self._ranks]
        return await self._answers(calls, method.__name__)

    async def _answers(self, calls: Sequence[Awaitable[Answer]], method: str) -> list[Answer]:
        call = RemoteCall(
            name=f"learner {method}",
            failure=LearnerError,
            lost=LearnerLostError,
            timeout_s=self._config.cluster.learner_timeout_s,
            advice=_ADVICE,
        )
        try:
            return await answer_of(asyncio.gather(*calls), call)
        except LearnerError as error:
            if (
                type(error) is LearnerError
            ):  # its peers fail when a rank dies, often before Ray knows
                with suppress(TimeoutError):
                    await self._pings(timeout_s=_DEATH_S)
            raise

    async def _pings(self, timeout_s: float | None) -> None:
        """Wait until every rank has answered. Raises LearnerLostError if one is dead, and
        TimeoutError.
        """
        call = RemoteCall(
            name="learner", failure=LearnerError, lost=LearnerLostError, advice=_ADVICE
        )
        pings = [_call(rank, LearnerActor.ping) for rank in self._ranks]
        async with asyncio.timeout(timeout_s):
            await answer_of(asyncio.gather(*pings), call)

    def _setup(self, rank: int, address: str, port: int) -> TrainerSetup:
        config = self._config
        return TrainerSetup(
            rank=rank,
            world_size=len(self._ranks),
            master_addr=address,
            master_port=port,
            model_path=self._model_path,
            model=anywhere(config.model),
            learner=config.learner,
            sft=self._sft,
            device="cuda" if self._gpu else "cpu",
            signing=self._signing,
            deterministic=config.run.deterministic,
        )


def learner_environment(*, gpu: bool) -> dict[str, str]:
    """Return the environment variables of a learner rank's process."""
    shared = {"HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cuda" if gpu else "cpu"}
    # cuBLAS sums in the same order every time only with a fixed workspace
    return shared | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if gpu else {"OMP_NUM_THREADS": "1"})


def _call(
    rank: Any,
    method: Callable[Concatenate[LearnerActor, Arguments], Answer],
    *arguments: Arguments.args,
    **named: Arguments.kwargs,
) -> Awaitable[Answer]:
    """Call `method` of the actor `rank`; Ray's handles are untyped, the method's type is not."""
    return getattr(rank, method.__name__).remote(*arguments, **named)


async def _put(table: pa.Table) -> Any:
    """Store `table` in Ray; a method that is called with the result gets the table itself.

    It is stored as one chunk, because each chunk would be pickled as some hundred buffers. A step
    of thousands of long episodes is a gigabyte, whose two copies must not stop the event loop.
    """
    return await asyncio.to_thread(lambda: ray.put(table.combine_chunks()))


async def _next(stream: Any) -> dict[str, float] | None:
    """Return the next item of a rank's stream (Ray's ObjectRefGenerator), None at its end."""
    try:
        return await (await anext(stream))
    except StopAsyncIteration:
        return None
