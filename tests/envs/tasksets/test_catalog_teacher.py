"""The catalog's teachers, played against the real sources of real tasks."""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import pytest

from envs.messages import Message
from envs.tasks import Task
from envs.tasksets.catalog.config import CatalogConfig
from envs.tasksets.catalog.environment import CatalogEnvironment
from envs.tasksets.catalog.teacher import (
    SCARCE_CALLS,
    direct_reply,
    sample_trial_calls,
    trial_reply,
)
from tests.envs.tasksets.answers_of import score_of

Reply = Callable[[Sequence[Message], int], str]


def called(task: Task, text: str) -> str:
    """Answer the tool call in `text` as a session would; the sources are our own."""
    call = json.loads(text.split("<tool_call>")[1].split("</tool_call>")[0])
    index = [tool.name for tool in task.tool_set.tools].index(call["name"])
    namespace: dict[str, Callable[..., str]] = {}
    exec(task.tool_set.sources[index], namespace)
    try:
        return namespace[call["name"]](**call["arguments"])
    except ValueError as error:
        return f"error: ValueError: {error}"


def opening(task: Task, mode: str) -> list[Message]:
    lines = [
        f"{i}. {tool.name}(x): {tool.description}" for i, tool in enumerate(task.tool_set.tools, 1)
    ]
    return [Message("system", "\n".join([mode, *lines])), Message("user", task.question)]


def played(task: Task, seed: int, reply: Reply, trials: int) -> list[Message]:
    """Play one episode to its answer, with `trials` trial calls granted."""
    messages = opening(task, "trial" if reply is trial_reply else "direct")
    executing, left = reply is direct_reply, trials
    for _ in range(20):
        text = reply(messages, seed)
        messages.append(Message("assistant", text))
        if "<answer>" in text:
            return messages
        if "<experience>" in text:
            executing = True
            messages.append(Message("user", "go"))
        elif not executing and left == 0:
            messages.append(Message("tool", "no trials left"))
        else:
            left -= not executing
            messages.append(Message("tool", called(task, text)))
    raise AssertionError(f"no answer in {messages}")


def reward(task: Task, messages: Sequence[Message]) -> float:
    answer = re.search(r"<answer>(.*)</answer>", messages[-1].content)
    return score_of(task, answer[1] if answer else "")


@cache
def episodes(reply: Reply, trials: int, count: int = 300) -> list[tuple[Task, list[Message]]]:
    tasks = CatalogEnvironment().tasks("heldout", 11, count)
    return [(task, played(task, seed, reply, trials)) for seed, task in enumerate(tasks)]


def said(messages: Sequence[Message]) -> str:
    return " ".join(message.content for message in messages if message.role == "assistant")


def test_a_teacher_that_does_not_guess_is_always_right() -> None:
    diligent = [(t, m) for t, m in episodes(trial_reply, 8) if "guess" not in said(m)]
    assert len(diligent) > 100
    assert all(reward(task, messages) == 1.0 for task, messages in diligent)


def test_trials_help_and_are_what_helps() -> None:
    allowed = [reward(task, messages) for task, messages in episodes(trial_reply, 8)]
    blocked = [reward(task, messages) for task, messages in episodes(trial_reply, 0)]
    assert sum(allowed) > sum(blocked) + 0.15 * len(allowed)
    assert 0.25 < sum(blocked) / len(blocked) < 0.55


def test_the_execution_never_needs_more_than_two_calls() -> None:
    for _, messages in episodes(trial_reply, 8):
        start = next(i for i, message in enumerate(messages) if message.content == "go")
        assert said(messages[start:]).count("<tool_call>") <= 2


def test_some_executions_forget_the_quirk_and_mend_it() -> None:
    forgot = 0
    for task, messages in episodes(trial_reply, 8):
        start = next(i for i, message in enumerate(messages) if message.content == "go")
        knew = re.search(r"<experience>[^,]*, ", messages[start - 1].content) is not None
        if knew and said(messages[start:]).count("<tool_call>") == 2:
            forgot += 1
            assert reward(task, messages) in (0.0, 1.0)
    assert 3 <= forgot <= 40


def test_every_later_trial_restates_goal_or_repair() -> None:
    for task, messages in episodes(trial_reply, 8, count=60):
        goal = task.question.split()[0]
        turns = [m.content for m in messages if m.role == "assistant" and "123" in m.content]
        for turn in turns[1:]:
            assert f"want {goal}: try" in turn or re.match(r"(needs key=|use )\w+: try", turn)


def test_a_reply_depends_on_conversation_and_seed_alone() -> None:
    task = CatalogEnvironment().tasks("heldout", 11, 1)[0]
    assert played(task, 5, trial_reply, 8) == played(task, 5, trial_reply, 8)
    assert len({said(played(task, seed, trial_reply, 8)) for seed in range(40)}) > 1


def test_the_direct_teacher_takes_the_documented_tool_and_makes_no_trial() -> None:
    for task, messages in episodes(direct_reply, 0):
        goal = task.question.split()[0]
        documented = [t.name for t in task.tool_set.tools if t.description == f"{goal} x"]
        name = re.search(r'"name": "(\w+)"', messages[2].content)
        assert name is not None
        assert not documented or name[1] in documented
        assert "<experience>" not in said(messages)


def test_budgets_are_mostly_full_and_at_times_scarce() -> None:
    drawn = [sample_trial_calls(seed, 8) for seed in range(1000)]
    assert 0.6 < drawn.count(8) / 1000 < 0.8
    assert set(drawn) == {*range(SCARCE_CALLS + 1), 8}
    assert {sample_trial_calls(seed, 0) for seed in range(50)} == {0}


@pytest.mark.parametrize("depth", ["2", "3"])
def test_a_diligent_teacher_solves_every_depth_within_the_stated_calls(
    depth: Literal["2", "3"],
) -> None:
    config = CatalogConfig(depths={depth: 1.0}, examples=0.3)
    played_all = [
        (task, played(task, seed, trial_reply, config.trial_calls))
        for seed, task in enumerate(CatalogEnvironment(config).tasks("train", 2, 150))
    ]
    diligent = [(t, m) for t, m in played_all if "guess" not in said(m)]
    assert len(diligent) > 60
    for task, messages in diligent:
        assert reward(task, messages) == 1.0
        start = next(i for i, message in enumerate(messages) if message.content == "go")
        assert said(messages[:start]).count("<tool_call>") <= config.trial_calls
        assert said(messages[start:]).count("<tool_call>") <= config.execution_calls
    kept = sum(reward(task, messages) for task, messages in played_all) / len(played_all)
    assert 0.6 < kept < 0.95


def test_with_several_goals_each_turn_says_what_the_next_decision_needs() -> None:
    config = CatalogConfig(depths={"2": 1.0})
    tasks = CatalogEnvironment(config).tasks("heldout", 2, 60)
    plays = [(task, played(task, seed, trial_reply, 8)) for seed, task in enumerate(tasks)]
    task, messages = next(
        (task, messages)
        for task, messages in plays
        if "found" in said(messages) and "guess" not in said(messages)
    )
    first, second, value = task.question.split()
    turns = [m.content for m in messages if m.role == "assistant"]
    noted = next(turn for turn in turns if "found" in turn)
    clause = r"(\S+) \d\. \w{4}(?:, [^;<]+)?"
    got = re.match(
        rf"got (\S+), want {first} {second}: found {clause}; want (\S+): try \d\. <", noted
    )
    assert got is not None
    assert got[1] == got[2]
    assert {got[1], got[3]} == {first, second}
    concluded = next(turn for turn in turns if "<experience>" in turn)
    learnt = re.fullmatch(
        rf"got {got[3]}, want {got[3]}: done \d\. <experience>{clause}; {clause}</experience>",
        concluded,
    )
    assert learnt is not None
    assert set(learnt.groups()) == {first, second}
    steps = turns[turns.index(concluded) + 1 : -1]
    known = re.findall(r"[\w-]+ \d\. \w{4}", concluded)
    for step, goal in ((steps[0], first), (steps[-1], second)):
        assert next(words for words in known if words.startswith(goal)) in step
    assert value in steps[0]
