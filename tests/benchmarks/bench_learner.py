"""Our GRPO step against TRL's GRPOTrainer and a plain padded loop, on one ragged batch; one table.

Run: python -m tests.benchmarks.bench_learner [--models tiny smollm2-135m-instruct] [--rounds 3]

The batch, learner_episodes.jsonl, is eight groups of eight episodes as `trialrun demo` sampled and
trained on them half-way: their tokens, rewards, and which tokens the policy sampled. Every
contender runs in a process of its own, with the same weights, dtype, thread count and AdamW, and
does forward, loss, backward, clip and optimizer step. Tokens per second count the tokens of the
episodes, whatever the contender computes; "by CPU" compares processor time, which other programs
on the machine disturb less than the clock. Gradient norms agree where the work does. Memory is the
peak of resident memory during the steps, and beside it what of that is not the loaded program.
TRL's gradient checkpointing is off, as is ours.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from envs.messages import Message
from learner.config import LearnerConfig
from learner.pretrained.resolve import TINY, resolve_model
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig
from rollout.engine import VersionSpan
from rollout.episode import Episode, Lease, Outcome, Phase, Sampling, Timings
from rollout.episode_schema import to_batch

EPISODES = Path(__file__).with_name("learner_episodes.jsonl")
CONTENDERS = ("trialrun", "trialrun, nothing shared", "TRL GRPOTrainer", "padded loop")
GROUP = 8
LR = 1e-6
ADVANTAGE_EPS = 0.1
Step = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Job:
    """What one contender is asked for; `budget` is tokens, padding included, of a micro-batch."""

    contender: str
    path: str
    dtype: str
    episodes: int
    budget: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Padded:
    """B episodes: prompts padded on the left, completions of C tokens on the right."""

    prompts: Tensor
    prompt_mask: Tensor
    completions_BC: Tensor
    completion_mask_BC: Tensor
    sampled_BC: Tensor
    advantages_B: Tensor

    def parts(self, rows: int) -> list["Padded"]:
        """Cut into micro-batches of `rows` episodes."""
        fields = [getattr(self, name).split(rows) for name in self.__slots__]
        return [Padded(*part) for part in zip(*fields, strict=True)]


def read_rows(count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in EPISODES.read_text().splitlines()[:count]]


def table_of(rows: list[dict[str, Any]], *, apart: bool, logprobs: list[Any] | None) -> pa.Table:
    """Return episodes for our trainer; `apart` gives each a temperature, so that none share."""
    episodes = []
    for index, row in enumerate(rows):
        ids, starts = row["token_ids"], [start for start, _ in row["sampled"]]
        phases = [int(Phase.OBSERVATION)] * len(ids)
        phases[: starts[0]] = [int(Phase.PROMPT)] * starts[0]
        for start, stop in row["sampled"]:
            phases[start:stop] = [int(Phase.EXECUTION)] * (stop - start)
        behaviour = [-1.0 if phase == Phase.EXECUTION else float("nan") for phase in phases]
        group = str(row["group"])
        episodes.append(
            Episode(
                lease=Lease("bench", f"e{index}", group, f"task-{group}", index, 0, index),
                environment="catalog",
                split="train",
                mode="trial",
                outcome=Outcome.ANSWERED,
                error="",
                reward=row["reward"],
                reward_parts={},
                answer="",
                question="",
                tags={},
                token_ids_T=tuple(ids),
                phases_T=tuple(phases),
                logprobs_T=tuple(behaviour if logprobs is None else logprobs[index].tolist()),
                spans=(VersionSpan(starts[0], 1),),
                turns=(),
                messages=(Message("user", "?"),),
                sampling=Sampling(1.0 + 1e-6 * index * apart, 1.0, 0, index),
                timings=Timings(
                    started_at=0.0, wall_s=0.0, queue_s=0.0, generate_s=0.0, tool_s=0.0
                ),
                source="policy",
                worker="w0",
                tool_server="s0",
                isolation="seccomp",
            )
        )
    return pa.Table.from_batches([to_batch(episodes)])


def ours(job: Job) -> Step:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trainer = Trainer(
        TrainerSetup(
            rank=0,
            world_size=1,
            master_addr="127.0.0.1",
            master_port=port,
            model_path=job.path,
            model=ModelConfig.model_validate(
                {"path": job.path, "dtype": job.dtype, "max_model_len": 512}
            ),
            learner=LearnerConfig.model_validate(
                {
                    "lr": LR,
                    "zero_stage": 0,
                    "micro_batch_tokens": job.budget,
                    "drop_zero_variance": False,
                    "advantage_eps": ADVANTAGE_EPS,
                }
            ),
        )
    )
    rows = read_rows(job.episodes)
    apart = job.contender != CONTENDERS[0]
    seen = trainer.logprobs(table_of(rows, apart=apart, logprobs=None))
    table = table_of(rows, apart=apart, logprobs=seen)
    return lambda: trainer.rl_step(table).metrics["grad_norm"]


def pad(rows: list[dict[str, Any]]) -> Padded:
    """Pad as TRL does: prompts to the longest, and completions to the longest."""
    cuts = [row["sampled"][0][0] for row in rows]
    before, after = max(cuts), max(len(r["token_ids"]) - c for r, c in zip(rows, cuts, strict=True))
    prompts, prompt_mask = torch.zeros(2, len(rows), before, dtype=torch.int64)
    completions, mask, sampled = torch.zeros(3, len(rows), after, dtype=torch.int64)
    for index, (row, cut) in enumerate(zip(rows, cuts, strict=True)):
        ids = torch.tensor(row["token_ids"])
        prompts[index, before - cut :] = ids[:cut]
        prompt_mask[index, before - cut :] = 1
        completions[index, : len(ids) - cut] = ids[cut:]
        mask[index, : len(ids) - cut] = 1
        for start, stop in row["sampled"]:
            sampled[index, start - cut : stop - cut] = 1
    rewards_GS = torch.tensor([row["reward"] for row in rows]).view(-1, GROUP)
    centred_GS = rewards_GS - rewards_GS.mean(1, keepdim=True)
    spread_G1 = rewards_GS.std(1, keepdim=True, correction=0)
    values = (centred_GS / (spread_G1 + ADVANTAGE_EPS)).flatten()
    return Padded(prompts, prompt_mask, completions, mask, sampled, values)


def parts_of(job: Job) -> list[Padded]:
    padded = pad(read_rows(job.episodes))
    width = padded.prompts.shape[1] + padded.completions_BC.shape[1]
    return padded.parts(max(1, job.budget // width))


def stepper(model: nn.Module, parts: list[Padded], add: Callable[[Padded], None]) -> Step:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )

    def step() -> float:
        for part in parts:
            add(part)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm)

    return step


def trl(job: Job) -> Step:
    trl_module, datasets = import_module("trl"), import_module("datasets")
    parts = parts_of(job)
    trainer = trl_module.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.path, dtype=job.dtype),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl_module.GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=len(parts),
            epsilon=0.2,
            epsilon_high=0.25,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "?"}] * 8),
        processing_class=AutoTokenizer.from_pretrained(job.path),
    )
    trainer.current_gradient_accumulation_steps = len(parts)
    trainer.model.train()
    total = torch.tensor(float(sum(int(part.sampled_BC.sum()) for part in parts)))

    def add(part: Padded) -> None:
        inputs = {
            "prompt_ids": part.prompts,
            "prompt_mask": part.prompt_mask,
            "completion_ids": part.completions_BC,
            "completion_mask": part.completion_mask_BC,
            "tool_mask": part.sampled_BC,
            "advantages": part.advantages_B,
            "num_items_in_batch": total * trainer.args.steps_per_generation / len(parts),
        }
        trainer.accelerator.backward(trainer.compute_loss(trainer.model, inputs))

    return stepper(trainer.model, parts, add)


def padded_loop(job: Job) -> Step:
    parts = parts_of(job)
    model: Any = AutoModelForCausalLM.from_pretrained(job.path, dtype=job.dtype).train()
    total = sum(int(part.sampled_BC.sum()) for part in parts)

    def add(part: Padded) -> None:
        before = part.prompts.shape[1]
        ids = torch.cat([part.prompts, part.completions_BC], 1)
        mask = torch.cat([part.prompt_mask, part.completion_mask_BC], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        all_logprobs = logits[:, before - 1 : -1].float().log_softmax(-1)
        logprobs_BC = all_logprobs.gather(2, part.completions_BC[..., None])[..., 0]
        ratio_BC = (logprobs_BC - logprobs_BC.detach()).exp()
        advantages = part.advantages_B[:, None]
        gain_BC = torch.minimum(ratio_BC * advantages, ratio_BC.clamp(0.8, 1.25) * advantages)
        (-(gain_BC * part.sampled_BC).sum() / total).backward()

    return stepper(model, parts, add)


def resident(field: str) -> float:
    """Return a line of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def contend(job: Job) -> dict[str, float]:
    """Run one contender in this process."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    makers = (ours, ours, trl, padded_loop)
    step = makers[CONTENDERS.index(job.contender)](job)
    loaded = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    norm = step()  # also warms up
    seconds, cpu_seconds = [], []
    for _ in range(job.rounds):
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    peak = resident("VmHWM")
    return {
        "grad_norm": norm,
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "peak_mib": peak,
        "added_mib": peak - loaded,
    }


def in_own_process(job: Job) -> dict[str, float]:
    arguments = [str(getattr(job, name)) for name in job.__slots__]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_learner", "--job", *arguments],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if done.returncode:
        raise SystemExit(f"{job.contender} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(model: str, arguments: argparse.Namespace, table: Table) -> None:
    """Add a row per contender to `table`."""
    small = model == TINY
    path = str(resolve_model(model, Path(arguments.models_folder)))
    episodes = min(arguments.episodes or (64 if small else 16), 64)
    budget = arguments.budget or (16384 if small else 2048)
    tokens = sum(len(row["token_ids"]) for row in read_rows(episodes))
    first: dict[str, float] = {}
    for contender in CONTENDERS:
        job = Job(contender, path, arguments.dtype, episodes, budget, arguments.rounds)
        found = in_own_process(job)
        first = first or found
        table.add_row(
            f"{model}, {episodes} episodes",
            contender,
            f"{found['seconds']:.3f}",
            f"{tokens / found['seconds']:,.0f}",
            f"{found['seconds'] / first['seconds']:.2f}x",
            f"{found['cpu_seconds'] / first['cpu_seconds']:.2f}x",
            f"{found['peak_mib']:,.0f}",
            f"{found['added_mib']:,.0f}",
            f"{found['grad_norm']:.5f}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=[TINY, "smollm2-135m-instruct"])
    parser.add_argument("--models-folder", default="models", help="where converted models are kept")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--episodes", type=int, help="of 64; 64 for tiny, else 16")
    parser.add_argument("--budget", type=int, help="tokens of a micro-batch, padding included")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        contender, path, dtype, *numbers = arguments.job
        print(json.dumps(contend(Job(contender, path, dtype, *map(int, numbers)))))
        return
    table = Table(title=f"one GRPO step, {arguments.dtype}, median of {arguments.rounds}")
    for column in ("model", "way", "s", "tok/s", "ours is", "by CPU", "peak MiB", "added", "norm"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    for model in arguments.models:
        measure(model, arguments, table)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
