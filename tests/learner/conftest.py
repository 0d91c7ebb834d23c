"""Episodes and a small Llama for the learner's tests."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from envs.messages import Message
from rollout.engine import VersionSpan
from rollout.episode import Episode, Lease, Outcome, Phase, Sampling, Timings
from rollout.episode_schema import to_batch

VOCABULARY = 64
MakeEpisode = Callable[..., Episode]
MakeTable = Callable[[Sequence[Episode]], pa.Table]


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with tied embeddings and a file that stands for its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def make_episode() -> MakeEpisode:
    """Make an episode of `length` tokens: prompt, trial, observation, execution, a quarter each."""

    def make(
        index: int,
        *,
        group: str = "g0",
        reward: float | None = 0.0,
        length: int = 24,
        temperature: float = 1.0,
        outcome: Outcome = Outcome.ANSWERED,
    ) -> Episode:
        generator = np.random.default_rng(index)
        quarter = length // 4
        phases = [Phase.PROMPT] * quarter + [Phase.TRIAL] * quarter + [Phase.OBSERVATION] * quarter
        phases += [Phase.EXECUTION] * (length - len(phases))
        logprobs = [
            float(value) if phase.sampled else float("nan")
            for phase, value in zip(phases, generator.normal(-4.2, 0.3, length), strict=True)
        ]
        return Episode(
            lease=Lease("run", f"e{index}", group, f"task-{group}", index, 0, index),
            environment="catalog",
            split="train",
            mode="trial",
            outcome=outcome,
            error="",
            reward=reward,
            reward_parts={},
            answer="",
            question="",
            tags={},
            token_ids_T=tuple(int(token) for token in generator.integers(0, VOCABULARY, length)),
            phases_T=tuple(int(phase) for phase in phases),
            logprobs_T=tuple(logprobs),
            spans=(VersionSpan(quarter, 1),),
            turns=(),
            messages=(Message("user", "?"),),
            sampling=Sampling(temperature, 1.0, 0, index),
            timings=Timings(started_at=0.0, wall_s=0.0, queue_s=0.0, generate_s=0.0, tool_s=0.0),
            source="policy",
            worker="w0",
            tool_server="s0",
            isolation="seccomp",
        )

    return make


@pytest.fixture(scope="session")
def make_table() -> MakeTable:
    """Turn episodes into the table a trainer takes."""
    return lambda episodes: pa.Table.from_batches([to_batch(episodes)])
