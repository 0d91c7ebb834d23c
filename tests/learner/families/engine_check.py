"""The whole way of a tiny family: SFT, RL, push, and greedy parity of vLLM with transformers.

`python -m tests.learner.families.engine_check` tries every family, half a minute each, and writes
the table of docs/models.md. With names it tries only those and prints what it found as JSON.
"""

import argparse
import asyncio
import importlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM

from envs.errors import EngineError
from learner.config import LearnerConfig, SftConfig
from learner.outputs.publish import SharedMemoryPublisher
from learner.pretrained.architecture import check_trained
from learner.pretrained.folder import folder_weights
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import EngineConfig, ModelConfig
from rollout.engine import Completion, Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.vllm_environment import engine_environment
from rollout.episode import Phase
from rollout.episode_schema import to_batch
from tests.learner.families.table import LARGEST, write_table
from tests.learner.families.tiny_families import FAMILIES, MAX_LEN, WINDOW, build_family
from tests.rollout.conftest import make_episode

BACKEND = "learner.backends.deepspeed_backend:DeepSpeedBackend"
ENGINE = "rollout.engines.vllm_engine:VllmEngine"
SHM = Path("/dev/shm")
LENGTHS = (5, 3 * WINDOW, WINDOW + 3, 2 * WINDOW)
"""Of the prompts, which begin alike; with the completions all but the first outgrow a window."""
GREEDY = SamplingParams(max_tokens=2 * WINDOW, temperature=0.0)
STOP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """What was found for one family; differences are the largest over tokens, in nats."""

    family: str
    start: float = float("nan")
    """Between learner and engine before training."""
    pushed: float = float("nan")
    """The same after an SFT step's model took an RL step and was pushed."""
    exported: float = float("nan")
    """Between the engine then and transformers with the exported folder."""
    greedy: bool = False
    """Whether each token that vLLM chose is the one that transformers prefers."""
    problem: str = ""
    """Why vLLM does not serve it here."""


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    start = torch.randint(10, 100, (4,), generator=generator).tolist()
    return [
        start + torch.randint(10, 100, (length - 4,), generator=generator).tolist()
        for length in LENGTHS
    ]


def table_of(asked: Sequence[Sequence[int]], answered: Sequence[Completion]) -> pa.Table:
    """Return the episodes as a learner takes them: greedy, in two groups with unequal rewards."""
    episodes = []
    for number, (prompt, completion) in enumerate(zip(asked, answered, strict=True)):
        ids = (*prompt, *completion.token_ids)
        sampled = len(completion.token_ids)
        bare = make_episode(f"e{number}")
        episodes.append(
            replace(
                bare,
                lease=replace(bare.lease, group=f"g{number // 2}"),
                reward=float(number % 2),
                turns=(),
                spans=(replace(bare.spans[0], start=len(prompt), version=0),),
                token_ids_T=ids,
                phases_T=(int(Phase.PROMPT),) * len(prompt) + (int(Phase.EXECUTION),) * sampled,
                logprobs_T=(float("nan"),) * len(prompt) + completion.logprobs,
                sampling=replace(bare.sampling, temperature=1.0),
            )
        )
    return pa.Table.from_batches([to_batch(episodes)])


def trainer_of(folder: Path, dtype: str, *, sft: bool = False) -> Trainer:
    setup = TrainerSetup(
        rank=0,
        world_size=1,
        master_addr="127.0.0.1",
        master_port=int(os.environ["FAMILIES_PORT"]),
        model_path=str(folder),
        model=config_of(folder, dtype),
        learner=LearnerConfig(lr=1e-3),
        sft=SftConfig(lr=1e-3) if sft else None,
    )
    return Trainer(setup, resolve_name(BACKEND))


def config_of(folder: Path, dtype: str) -> ModelConfig:
    section = {"path": str(folder), "max_model_len": MAX_LEN, "dtype": dtype}
    return ModelConfig.model_validate(section)


def learner_gap(trainer: Trainer, table: pa.Table, answered: Sequence[Completion]) -> float:
    found = [mine[~np.isnan(mine)] for mine in trainer.logprobs(table)]
    gaps = [
        np.abs(mine - np.array(completion.logprobs)).max()
        for mine, completion in zip(found, answered, strict=True)
    ]
    return float(max(gaps))


@torch.no_grad()
def plain_gap(
    folder: Path, dtype: str, asked: Sequence[Sequence[int]], answered: Sequence[Completion]
) -> tuple[float, bool]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    gaps, same = [], True
    for prompt, completion in zip(asked, answered, strict=True):
        ids_T = torch.tensor([*prompt, *completion.token_ids])
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        all_TV = logits_TV.float().log_softmax(-1)
        chosen_T = all_TV.gather(1, ids_T[len(prompt) :, None])[:, 0]
        gaps.append(float((chosen_T - torch.tensor(completion.logprobs)).abs().max()))
        # a token that ties with the best one within rounding is as good
        same = same and bool((all_TV.amax(-1) - chosen_T <= 2 * LARGEST[dtype]).all())
    return max(gaps), same


async def check_family(name: str, root: Path) -> EngineResult:
    """Try one family in the new folder `root`."""
    folder = build_family(FAMILIES[name], root / "base")
    dtype = FAMILIES[name].dtype
    config = config_of(folder, dtype)
    carried = check_trained(folder, config).carried
    spec = EngineSpec(
        model_path=str(folder),
        model=config,
        engine=EngineConfig.model_validate({"kv_cache_mib": 64}),
        seed=7,
    )
    engine: Any = resolve_name(ENGINE)(spec, stop_token_ids=(STOP,))
    asked = prompts()

    async def play() -> list[Completion]:
        names = [f"{number}-{engine.version}" for number in range(len(asked))]
        sampling = [
            engine.sample(Prompt(request, prompt, ()), GREEDY)
            for request, prompt in zip(names, asked, strict=True)
        ]
        return list(await asyncio.gather(*sampling))

    try:
        await engine.start()
        answered = await play()
    except EngineError as error:
        return EngineResult(family=name, problem=str(error).splitlines()[0])
    table = table_of(asked, answered)
    teaching = trainer_of(folder, dtype, sft=True)
    list(teaching.sft(table))
    teaching.export_model(root / "sft")
    teaching.close()

    untrained = trainer_of(folder, dtype)
    start = learner_gap(untrained, table, answered)
    untrained.close()
    trainer = trainer_of(root / "sft", dtype)
    report = trainer.rl_step(table)
    assert report.metrics["grad_norm"] > 0
    publisher = SharedMemoryPublisher(SHM, engine.layout, folder_weights(folder, carried))
    await engine.load_weights(publisher.publish(1, trainer.pushed_weights()))
    answered = await play()
    publisher.close()
    await engine.close()
    trainer.export_model(root / "rl")
    exported, greedy = plain_gap(root / "rl", dtype, asked, answered)
    pushed = learner_gap(trainer, table_of(asked, answered), answered)
    trainer.close()
    return EngineResult(family=name, start=start, pushed=pushed, exported=exported, greedy=greedy)


def main() -> None:
    """Try the families that are named, or all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"among {', '.join(FAMILIES)}")
    chosen = parser.parse_args()
    os.environ.update(engine_environment(gpu=False), DS_ACCELERATOR="cpu", TQDM_DISABLE="1")
    os.environ.setdefault("FAMILIES_PORT", "29555")
    importlib.import_module(ENGINE.partition(":")[0])  # before torch's threads are counted
    served = [name for name, family in FAMILIES.items() if not family.refused + family.unserved]
    names = chosen.names or served
    results = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            results.append(asyncio.run(check_family(name, Path(scratch))))
            print(json.dumps(asdict(results[-1])), flush=True)
    if not chosen.names:
        write_table({result.family: result for result in results})


if __name__ == "__main__":
    main()
