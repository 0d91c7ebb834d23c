"""The learner as the loop sees it: its ranks as one, every wait with a deadline."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from cluster.config.run_config import RunConfig
from cluster.fleet.learner_actor import LearnerActor
from envs.errors import LearnerError, TrialrunError
from learner.config import SftConfig
from learner.report import StepReport
from learner.trainer_setup import TrainerSetup
from rollout.weights.manifest import WeightManifest

_CLOSE_S = 10.0
"""A rank at work would close after it: an SFT may take hours. The next run removes what it left."""


@dataclass(frozen=True, slots=True)
class LearnerPlan:
    """What the ranks are started with; `sft` makes them imitate instead of reinforce."""

    config: RunConfig
    model_path: str
    sft: SftConfig | None = None


class LearnerGroup:
    """All ranks of the learner."""

    def __init__(self, plan: LearnerPlan) -> None:
        section = plan.config.cluster
        self._plan = plan
        self._gpu = section.gpus_per_rank > 0
        self._timeout_s = section.learner_timeout_s
        remote: Any = ray.remote(LearnerActor)
        options = remote.options(
            num_cpus=section.cpus_per_rank,
            num_gpus=section.gpus_per_rank,
            runtime_env={"env_vars": learner_environment(gpu=self._gpu)},
        )
        self._ranks: list[Any] = [
            options.remote(section.transport, section.shm_dir)
            for _ in range(plan.config.learner.ranks)
        ]

    async def start(self) -> None:
        """Load the model on every rank; they meet at rank 0's node. Raises LearnerError."""
        address, port = (await self._each([self._ranks[0].rendezvous.remote()], "rendezvous"))[0]
        setups = [self._setup(rank, address, port) for rank in range(len(self._ranks))]
        pairs = zip(self._ranks, setups, strict=True)
        await self._each([rank.start.remote(setup) for rank, setup in pairs], "start")

    async def rl_step(self, table: pa.Table, *, digest_weights: bool = False) -> StepReport:
        """Make one RL step on the episodes of `table`. Raises LearnerError.

        With `digest_weights` the report has a digest of every weight of the whole model.
        """
        return (await self._all("rl_step", _put(table), digest_weights=digest_weights))[0]

    async def sft(
        self, table: pa.Table, seed: int, checkpoints: Path, steps_done: int = 0
    ) -> AsyncIterator[dict[str, float]]:
        """Imitate the episodes of `table`; yields the metrics of each optimizer step.

        Checkpoints go to the folder `checkpoints`; `steps_done` is the step of the one that was
        loaded. A step, not the whole, has the learner's deadline. Raises LearnerError.
        """
        asked = (_put(table), seed, steps_done, str(checkpoints))
        told = [rank.sft.options(num_returns="streaming").remote(*asked) for rank in self._ranks]
        while (metrics := (await self._each([_next(one) for one in told], "sft"))[0]) is not None:
            yield metrics

    async def publish_weights(self, version: int) -> WeightManifest:
        """Publish the current weights as `version`."""
        return (await self._all("publish_weights", version))[0]

    async def save_checkpoint(self, path: Path, step: int) -> None:
        await self._all("save_checkpoint", str(path), step)

    async def load_checkpoint(self, path: Path) -> int:
        """Continue from a checkpoint; return its step."""
        return (await self._all("load_checkpoint", str(path)))[0]

    async def export_model(self, path: Path) -> None:
        """Write the weights as a Hugging Face folder, in place of one of an earlier end."""
        shutil.rmtree(path, ignore_errors=True)
        await self._all("export_model", str(path))

    async def logprobs(self, table: pa.Table) -> list[Any]:
        """Return per episode the logprobs (T,) of its sampled tokens under the current weights."""
        return (await self._all("logprobs", _put(table)))[0]

    async def close(self) -> None:
        """Let the ranks free what they hold, unless they are at work, then end them."""
        with suppress(TrialrunError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._all("close")
        for rank in self._ranks:
            ray.kill(rank)

    async def _all(self, method: str, *arguments: Any, **named: Any) -> list[Any]:
        return await self._each(
            [getattr(rank, method).remote(*arguments, **named) for rank in self._ranks], method
        )

    async def _each(self, answers: list[Any], method: str) -> list[Any]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return list(await asyncio.gather(*answers))
        except TimeoutError:
            raise LearnerError(
                f"learner {method}: expected an end within {self._timeout_s:g} s, found none"
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, TrialrunError):
                raise error.cause from None
            raise LearnerError(f"learner {method}: {error.cause!r}") from error
        except RayError as error:
            raise LearnerError(
                f"a learner rank died in {method}: {str(error).splitlines()[0]}; "
                "continue with --resume"
            ) from error

    def _setup(self, rank: int, address: str, port: int) -> TrainerSetup:
        config, world = self._plan.config, len(self._ranks)
        return TrainerSetup(
            rank,
            world,
            address,
            port,
            self._plan.model_path,
            config.model,
            config.learner,
            self._plan.sft,
            "cuda" if self._gpu else "cpu",
            config.run.deterministic,
        )


def learner_environment(*, gpu: bool) -> dict[str, str]:
    """Return the variables of a learner rank's process."""
    shared = {"HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cuda" if gpu else "cpu"}
    # cuBLAS gives the same sums again only with a workspace of its own
    return shared | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if gpu else {"OMP_NUM_THREADS": "1"})


def _put(table: pa.Table) -> Any:
    """Hand `table` to Ray in one piece: it pickles chunk by chunk, some hundred buffers each."""
    return ray.put(table.combine_chunks())


async def _next(told: Any) -> dict[str, float] | None:
    """Return what a rank tells next; None at its end. `told` is Ray's ObjectRefGenerator."""
    try:
        return await (await anext(told))
    except StopAsyncIteration:
        return None
