"""The world fails 10 % of tool calls: the real runner, rollouts and ledger, a scripted policy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cluster.config.run_config import RolloutsSection, RunConfig, to_toml
from cluster.fleet.pool import PoolTiming, RolloutPool
from cluster.scheduling.rollouts import Rollouts
from cluster.scheduling.task_stream import TaskStream
from envs.messages import Message
from envs.seeds import stable_hash
from envs.services.scripted import ScriptedTools
from envs.tasks import Environment, Score, Split, Task
from envs.tools import AnswerStatus, ToolAnswer, ToolCall, ToolSet, ToolSpec
from learner.batch import read_episodes
from learner.config import LearnerConfig
from learner.objective.selection import select
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engine import Completion, Prompt, SamplingParams
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Lease
from rollout.episode_schema import to_batch
from rollout.runner import EpisodeRunner, Identity
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.weights.manifest import WeightManifest

GROUPS, SIZE = 6, 6
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROBE = ToolSpec(
    name="probe",
    description="",
    parameters={"type": "object", "properties": {"x": {"type": "integer"}}},
)
DEFAULT_ATTEMPTS = RolloutsSection().max_attempts
CONFIG = LearnerConfig(advantage="grpo", credit="phase")


@dataclass(frozen=True, slots=True)
class FortyTwo:
    def score(self, answer: str) -> Score:
        return Score(float(answer == "42"))


class OneTool(Environment):
    @property
    def name(self) -> str:
        return "catalog"

    @property
    def endless(self) -> bool:
        return True

    def tasks(self, split: Split, seed: int, count: int | None) -> list[Task]:
        tools = ToolSet(tools=(PROBE,), sources=("def probe(x): return x",), functions=("probe",))
        return [
            Task(f"{split}-{i}", self.name, split, "?", tools, FortyTwo())
            for i in range(count or 16)
        ]


class Sampled(ScriptedEngine):
    """A scripted policy whose tokens have logprobs, as if they were sampled."""

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        said = await super().sample(prompt, params)
        return replace(said, logprobs=(-1.0,) * len(said.token_ids))


def policy(messages: Sequence[Message], seed: int) -> str:
    """Try 0 to 3 times, write it down, call once, and be right 6 times of 10."""
    trials = stable_hash(seed, "trials") % 4
    said = sum(message.role == "assistant" for message in messages)
    call = f'<tool_call>{{"name": "probe", "arguments": {{"x": {said}}}}}</tool_call>'
    if said < trials:
        return call
    answer = "42" if stable_hash(seed, "right") % 10 < 6 else "41"
    return ["<experience>-</experience>", call, f"<answer>{answer}</answer>"][said - trials]


@dataclass
class Injected:
    """WorkerClient around the real runner; one tool call in ten fails on the world's account."""

    template: ChatTemplate
    share: float
    calls: int = 0
    failures: int = 0

    async def start(self) -> None: ...

    async def load_weights(self, manifest: WeightManifest) -> None: ...

    async def ping(self) -> None: ...

    def kill(self) -> None: ...

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        made = 0

        def answer(call: ToolCall, before: list[ToolCall]) -> ToolAnswer:
            nonlocal made
            made += 1
            self.calls += 1
            if stable_hash(lease.episode, lease.attempt, made) % 1000 < 1000 * self.share:
                self.failures += 1
                return ToolAnswer(
                    status=AnswerStatus.INFRA_ERROR, text="the sandbox is gone", seconds=0.0
                )
            return ToolAnswer(status=AnswerStatus.OK, text="1", seconds=0.0)

        runner = EpisodeRunner(
            Sampled(policy, self.template),
            ScriptedTools(answer),
            self.template,
            Identity(worker="w", max_model_len=4096),
        )
        return to_batch([await runner.run_episode(lease, task, config)])


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = CHATML
    return ChatTemplate(fast)


async def collected(
    path: Path, template: ChatTemplate, share: float, attempts: int
) -> tuple[pa.Table, Injected, Any]:
    """Play one step's groups; returns them, what was injected, and the ledger's audit."""
    section = {
        "groups_per_step": GROUPS,
        "group_size": SIZE,
        "max_staleness": 0,
        "max_refills": 0,
        "max_attempts": attempts,
    }
    config = RunConfig.model_validate(
        {
            "run": {"dir": str(path), "name": "unit"},
            "rollouts": section,
            "episode": {"trial_call_cost": 0.05},
        }
    )
    worker = Injected(template, share)
    pool = RolloutPool(
        lambda _: worker,
        RolloutsSection.model_validate(section),
        PoolTiming(ping_every_s=60, start_timeout_s=5, load_timeout_s=1),
    )
    info = RunInfo(run="unit", seed=0, created_at=0.0)
    with RunDirectory.create(config.path, to_toml(config), info) as run:
        pool.resize(1)
        await pool.wait_healthy(1)
        rollouts = Rollouts(pool, TaskStream(OneTool(), "train", 0), run, config)
        rollouts.start(0)
        groups = await rollouts.collect(GROUPS)
        await rollouts.close()
        await pool.close()
        return pa.Table.from_batches([g.batch for g in groups]), worker, run.ledger.audit()


def advantages(table: pa.Table) -> dict[str, tuple[float, float]]:
    """Return what every episode's execution and trials get."""
    batch = read_episodes(table)
    selection = select(batch, CONFIG)
    pairs = zip(selection.advantages_B.tolist(), selection.trial_advantages_B.tolist(), strict=True)
    return {
        episode: pair
        for index, (episode, pair) in enumerate(zip(batch.episodes_B, pairs, strict=True))
        if index in selection.kept
    }


def sizes(table: pa.Table) -> list[int]:
    return [row["counts"] for row in table["group"].value_counts().to_pylist()]


def test_the_default_attempts_fill_999_groups_of_8_in_1000_at_8_calls_an_episode() -> None:
    def share_of_full_groups(attempts: int) -> float:
        return float((1 - (1 - 0.9**8) ** attempts) ** 8)

    assert (
        share_of_full_groups(DEFAULT_ATTEMPTS) >= 0.999 > share_of_full_groups(DEFAULT_ATTEMPTS - 1)
    )


async def test_groups_are_refilled_to_full_and_no_advantage_changes(
    tmp_path: Path, template: ChatTemplate
) -> None:
    clean, quiet, _ = await collected(tmp_path / "clean", template, 0.0, 3)
    failed, worker, audit = await collected(tmp_path / "failed", template, 0.1, DEFAULT_ATTEMPTS)
    assert quiet.failures == 0
    assert 0.05 < worker.failures / worker.calls < 0.2
    assert audit.re_leases == worker.failures > 0
    assert sizes(failed) == sizes(clean) == [SIZE] * GROUPS
    assert set(failed["outcome"].to_pylist()) == {"answered"}
    assert not audit.reasons
    assert advantages(failed) == advantages(clean)
    assert len(advantages(clean)) >= 4 * SIZE, "most groups vary, so that there is what to compare"


async def test_what_cannot_be_refilled_is_in_no_baseline(
    tmp_path: Path, template: ChatTemplate
) -> None:
    """One attempt only: survivors are compared with the survivors, as if nobody else had been."""
    clean, _, _ = await collected(tmp_path / "clean", template, 0.0, 1)
    failed, worker, audit = await collected(tmp_path / "failed", template, 0.1, 1)
    survivors = failed["episode"].to_pylist()
    assert GROUPS < len(survivors) < GROUPS * SIZE
    assert audit.reasons == {DropReason.INFRA_FAILED: worker.failures}
    alike = clean.filter(pa.array([name in survivors for name in clean["episode"].to_pylist()]))
    assert advantages(failed) == advantages(alike)
    assert advantages(failed) != {
        name: pair for name, pair in advantages(clean).items() if name in survivors
    }, "with the others in the baseline the numbers would be others"


@pytest.mark.parametrize("advantage", ["grpo", "grpo_batch_std", "gpg", "reinforce_pp_baseline"])
async def test_rows_that_the_world_failed_change_nothing_in_the_learner(
    tmp_path: Path, template: ChatTemplate, advantage: str
) -> None:
    """The same table with and without failed rows: selection and loss weights are the same."""
    table, _, _ = await collected(tmp_path, template, 0.0, 1)
    rows = table.to_pylist()
    for index, row in enumerate(table.slice(0, 9).to_pylist()):
        lost = {"outcome": "infra_failed", "reward": None, "reward_parts": []}
        rows.append(row | lost | {"episode": f"x{index}"})
    config = LearnerConfig.model_validate({"advantage": advantage})
    alone = select(read_episodes(table), config)
    beside = select(read_episodes(pa.Table.from_pylist(rows, table.schema)), config)
    tokens = len(alone.advantages_N)
    assert beside.kept == alone.kept
    assert beside.reasons_B[len(table) :] == ("no_reward",) * 9
    np.testing.assert_array_equal(beside.advantages_N[:tokens], alone.advantages_N)
    np.testing.assert_array_equal(beside.weights_N[:tokens], alone.weights_N)
