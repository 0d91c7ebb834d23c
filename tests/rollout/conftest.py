"""A small byte-level tokenizer with a chat template, and a task with two tools."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs.messages import Message
from envs.tasks import Score, Task
from envs.tools import AnswerStatus, ToolSet, ToolSpec
from rollout.chat.template import ChatTemplate
from rollout.engine import VersionSpan
from rollout.episode import (
    CallRecord,
    Episode,
    Lease,
    Outcome,
    Phase,
    RolloutKind,
    Sampling,
    Timings,
    Turn,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = chat_template
    return fast


@pytest.fixture(scope="session")
def chatml() -> str:
    return CHATML


@pytest.fixture(scope="session")
def tokenizer_with() -> Callable[[str | None], PreTrainedTokenizerFast]:
    return make_tokenizer


@dataclass(frozen=True, slots=True)
class Exactly:
    expected: str

    def score(self, answer: str) -> Score:
        return Score(float(answer == self.expected))


@pytest.fixture(scope="session")
def template() -> ChatTemplate:
    return ChatTemplate(make_tokenizer())


@pytest.fixture(scope="session")
def task() -> Task:
    tools = tuple(
        ToolSpec(
            name=name,
            description=f"{name} a number",
            parameters={
                "type": "object",
                "properties": {"x": {"type": "integer"}},
                "required": ["x"],
            },
        )
        for name in ("double", "halve")
    )
    sources = ("def double(x): return 2 * x", "def halve(x): return x // 2")
    tool_set = ToolSet(tools=tools, sources=sources, functions=("double", "halve"))
    return Task("task-1", "unit", "train", "What is double 21?", tool_set, Exactly("42"))


DOUBLED = CallRecord(
    name="double",
    arguments='{"x": 3}',
    status=AnswerStatus.OK,
    result="6",
    seconds=0.25,
    cpu_seconds=0.125,
    purpose="trial",
)
LEASE = Lease(
    run="run-1",
    episode="e0",
    kind=RolloutKind.TRAIN,
    group="g0",
    group_number=0,
    task="task-1",
    sample_index=0,
    attempt=0,
    seed=7,
)


def turn(phase: Phase, start: int, end: int, text: str) -> Turn:
    """A turn that stopped by itself, without calls."""
    return Turn(phase=phase, start=start, end=end, text=text, finish_reason="stop", policy_error="")


def make_episode(
    episode: str = "e0",
    *,
    lease: Lease | None = None,
    outcome: Outcome = Outcome.ANSWERED,
    tokens: int = 12,
    source: str = "policy",
) -> Episode:
    """An episode with a trial, an experience and an answer; `tokens` is at least 8."""
    trial = turn(Phase.TRIAL, 4, 5, "<tool_call>{...}</tool_call>")
    turns = (
        replace(trial, calls=(DOUBLED,)),
        turn(Phase.EXPERIENCE, 6, 7, "<experience>doubles</experience>"),
        turn(Phase.EXECUTION, 7, tokens, "<answer>42</answer>"),
    )
    messages = (
        Message("user", "What is double 21?"),
        *(Message("assistant", turn.text) for turn in turns),
    )
    phases = (0, 0, 0, 0, 1, 4, 2, *(3,) * (tokens - 7))
    return Episode(
        lease=lease or replace(LEASE, episode=episode),
        environment="unit",
        split="train",
        mode="trial",
        outcome=outcome,
        error="" if outcome.counts else "the server went away",
        reward=1.0 if outcome.counts else None,
        reward_parts={"correct": 1.0} if outcome.counts else {},
        answer="42",
        question="What is double 21?",
        tags={"depth": "1"},
        token_ids_T=tuple(range(100, 100 + tokens)),
        phases_T=phases,
        logprobs_T=tuple(-0.5 if Phase(phase).sampled else math.nan for phase in phases),
        spans=(VersionSpan(4, 3), VersionSpan(7, 4)),
        turns=turns,
        messages=messages,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=11),
        timings=Timings(
            started_at=1_700_000_000.25, wall_s=1.5, queue_s=0.25, generate_s=1.0, tool_s=0.25
        ),
        source=source,
        worker="worker-0",
        tool_server="tools-0",
        isolation="seccomp",
        extra={"trial_calls": 1.0},
    )


@pytest.fixture(scope="session")
def episode_with() -> Callable[..., Episode]:
    return make_episode


def lease_in(group: str, index: int, attempt: int = 0) -> Lease:
    """A training lease of the run `run-1`."""
    return Lease(
        run="run-1",
        episode=f"{group}.{index}",
        kind=RolloutKind.TRAIN,
        group=group,
        group_number=0,
        task=f"task-{group}",
        sample_index=index,
        attempt=attempt,
        seed=5,
    )
