"""Every knob of the catalog: solvable by honest trials, told apart by tags, and without leaks."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import get_args

import pytest
from pydantic import ValidationError

from envs.config import IsolationConfig, ToolServerConfig
from envs.errors import ConfigError
from envs.messages import Message
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tasks import Split, Task
from envs.tasksets.catalog.compositions import apply_all, reserved_pairs
from envs.tasksets.catalog.config import CatalogConfig, CatalogQuirk
from envs.tasksets.catalog.environment import CatalogEnvironment, ExactMatch
from envs.tasksets.catalog.operations import OPERATIONS, RESERVED_OPERATIONS, named
from envs.tasksets.catalog.teacher import trial_reply
from envs.tools import AnswerStatus
from tests.envs.tasksets.answers_of import score_of
from tests.envs.tasksets.catalog_leaks import composition_of, leaks

ALL_DEPTHS = {"1": 1.0, "2": 1.0, "3": 1.0}
ALL_QUIRKS = dict.fromkeys(get_args(CatalogQuirk), 1.0)
HARD = CatalogConfig.model_validate(
    {
        "depths": ALL_DEPTHS,
        "quirks": ALL_QUIRKS,
        "docs": {"vague": 1, "true": 1, "false": 1, "missing": 1},
        "tools": 5,
        "examples": 0.5,
        "novelty": ["names", "operations", "compositions"],
    }
)


def arguments_of(task: Task) -> dict[str, list[str]]:
    """Return the documented arguments of every tool."""
    shown: dict[str, list[str]] = {}
    for tool in task.tool_set.tools:
        properties = tool.parameters["properties"]
        assert isinstance(properties, dict)
        shown[tool.name] = list(properties)
    return shown


class Session:
    """A task's tools with their state, run in this process: the sources are our own."""

    def __init__(self, task: Task) -> None:
        self.calls = 0
        self._functions: dict[str, Callable[..., str]] = {}
        for name, source in zip(task.tool_set.functions, task.tool_set.sources, strict=True):
            namespace: dict[str, Callable[..., str]] = {}
            exec(source, namespace)
            self._functions[name] = namespace[name]

    def call(self, name: str, arguments: dict[str, str]) -> str:
        self.calls += 1
        try:
            return self._functions[name](**arguments)
        except ValueError as error:
            return f"error: ValueError: {error}"


class Prober:
    """Calls each tool until it answers, doing what its errors say; reads the results."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.mends: dict[str, list[str]] = {tool.name: [] for tool in task.tool_set.tools}

    def ask(self, session: Session, name: str, text: str) -> str:
        """Call tool `name` with `text` as often as it takes."""
        two = len(arguments_of(self.task)[name]) == 2
        for _ in range(4):
            arguments = {"x": text, "y": "on"} if two else {"x": text}
            for mend in self.mends[name]:
                if mend.startswith("needs key="):
                    arguments["key"] = mend[10:]
                elif mend.startswith("use "):
                    arguments = {mend[4:]: text}
                elif mend == "swap x y":
                    arguments = {"x": "on", "y": text}
            result = session.call(name, arguments)
            if not result.startswith("error: "):
                return result
            mend = result.removeprefix("error: ValueError: ")
            if mend == "open first":
                assert session.call(name, {"x": "open"}) == "open"
            elif mend not in self.mends[name]:
                self.mends[name].append(mend)
        raise AssertionError(f"{name} never answers")

    def solve(self) -> tuple[str, int, int]:
        """Return the answer, and the calls it took to try and to execute."""
        *goals, value = self.task.question.split()
        probe = goals[0].split(">")[0] if ">" in goals[0] else "123"
        trial, results, offsets = Session(self.task), {}, {}
        for name in self.task.tool_set.functions:
            digits = re.sub("[A-Z]", "", self.ask(trial, name, probe))
            counted = set(probe) == set("123")  # else no tool counts in another unit
            offsets[name] = (int(min(digits)) - 1) // 3 * 3 if counted else 0
            results[name] = "".join(str(int(digit) - offsets[name]) for digit in digits)
        execution = Session(self.task)
        for goal in goals:
            wanted = goal.split(">")[1] if ">" in goal else named(goal).apply("123")
            tool = next(name for name, result in results.items() if result == wanted)
            made = self.ask(execution, tool, value)
            value = re.sub(r"\d", lambda d, o=offsets[tool]: str((int(d[0]) - o) % 10), made)
        return value, trial.calls, execution.calls


def drawn(config: CatalogConfig, split: Split = "heldout", count: int = 25) -> list[Task]:
    return list(CatalogEnvironment(config).tasks(split, 4, count))


def knob(**fields: object) -> CatalogConfig:
    return CatalogConfig.model_validate({**HARD.model_dump(), **fields})


CONFIGS = {
    "all": HARD,
    "marks": knob(marks=1.0),
    "duplicates": knob(duplicates=1.0),
    "nine tools": knob(tools=9),
    "no docs": knob(docs={"missing": 1.0}),
    "misleading docs": knob(docs={"false": 1.0}),
    **{quirk: knob(quirks={quirk: 1.0}) for quirk in get_args(CatalogQuirk)},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_honest_prober_solves_every_task_within_the_stated_calls(name: str) -> None:
    config = CONFIGS[name]
    for task in [*drawn(config), *drawn(config, "train")]:
        answer, trials, executions = Prober(task).solve()
        assert score_of(task, answer) == 1.0, task
        assert trials <= config.trial_calls
        assert executions <= config.execution_calls


@pytest.mark.parametrize("name", ["all", "marks", "duplicates"])
def test_the_same_seed_draws_the_same_tasks_whatever_the_knobs(name: str) -> None:
    for split in ("train", "heldout"):
        assert drawn(CONFIGS[name], split) == drawn(CONFIGS[name], split, count=40)[:25]


def test_levels_keep_their_depth_and_every_kind_is_sampled_and_tagged() -> None:
    tasks = drawn(HARD, count=500)
    seen = Counter((task.tags["novelty"], task.tags["depth"]) for task in tasks)
    assert set(seen) == {
        (novelty, depth)
        for novelty in ("names", "operations", "compositions")
        for depth in ALL_DEPTHS
        if (novelty, depth) != ("compositions", "1")
    }
    assert min(seen.values()) > 30
    for task in tasks:
        goals = task.question.split()[:-1]
        assert len(goals) == int(task.tags["depth"])
        assert all((">" in goal) == (task.tags["goals"] == "examples") for goal in goals)
    assert {kind for task in tasks for kind in task.tags["quirk"].split("+")} == set(ALL_QUIRKS)
    assert {task.tags["novelty"] for task in drawn(HARD, "train")} == {"seen"}


def test_new_operations_are_always_stated_by_example() -> None:
    tasks = [task for task in drawn(HARD, count=300) if task.tags["novelty"] == "operations"]
    reserved = {operation.name for operation in RESERVED_OPERATIONS}
    assert all(task.tags["goals"] == "examples" for task in tasks)
    assert {name for task in tasks for name in composition_of(task)} & reserved == reserved


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.real)])
def test_no_split_leaks(count: int) -> None:
    train = drawn(HARD, "train", count)
    assert leaks(train, drawn(HARD, "heldout", count)) == []
    assert leaks(train, drawn(HARD, "validation", count // 2)) == []
    compositions = {composition_of(task) for task in train}
    assert len(compositions) > 60


def test_train_composes_every_operation_first_and_second_but_no_reserved_pair() -> None:
    pairs = {composition_of(task) for task in drawn(knob(depths={"2": 1}), "train", 400)}
    for place in (0, 1):
        assert {pair[place] for pair in pairs} == {operation.name for operation in OPERATIONS}
        assert max(Counter(pair[place] for pair in reserved_pairs()).values()) == 1
    assert len(reserved_pairs()) >= 6
    assert not pairs & reserved_pairs()


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_tools_in_another_order_give_another_answer(split: Split) -> None:
    """With double-first and double-last, who mixed up their tools would be right all the same."""
    composed = [task for task in drawn(HARD, split, 300) if task.tags["depth"] != "1"]
    assert len(composed) > 100
    for task in composed:
        steps = [named(name, OPERATIONS + RESERVED_OPERATIONS) for name in composition_of(task)]
        value = task.question.split()[-1]
        answers = [apply_all(order, value) for order in permutations(steps)]
        assert answers.count(answers[0]) == 1, task.question


def test_examples_are_made_from_inputs_of_their_own() -> None:
    """Else a policy knows the few results by heart, and has never to compare two strings."""
    tasks = CatalogEnvironment(CatalogConfig(examples=1.0)).tasks("train", 5, 300)
    probes = {task.question.split(">")[0] for task in tasks}
    assert len(probes) > 200
    assert all(len(set(probe)) == 3 for probe in probes)
    units = CatalogConfig(examples=1.0, quirks={"unit": 1.0})
    tasks = CatalogEnvironment(units).tasks("train", 5, 50)
    assert {"".join(sorted(task.question.split(">")[0])) for task in tasks} == {"123"}


def test_leaks_are_found_where_there_are_some() -> None:
    train, other = drawn(HARD, "train", 100), drawn(HARD, "heldout", 200)
    found = " ".join(leaks(other, train))
    for leak in ("names the reserved operation", "with a reserved operation", "reserved pair"):
        assert leak in found
    again = next(task for task in train if task.tags["depth"] == "2")
    held = replace(again, split="heldout", tags={**again.tags, "novelty": "compositions"})
    found = " ".join(leaks(train, [held]))
    for leak in ("name ", "source ", "asks for a composition of train"):
        assert leak in found
    assert isinstance(again.scorer, ExactMatch)
    answer = again.scorer.expected
    shown = replace(again, question=f"{again.question} {answer}")
    assert "shows its answer" in " ".join(leaks([], [shown]))


def test_marks_make_the_answer_unknowable_without_the_tools() -> None:
    for task in drawn(knob(marks=1.0), count=100):
        *goals, value = task.question.split()
        for name in composition_of(task):
            value = named(name, OPERATIONS + RESERVED_OPERATIONS).apply(value)
        assert score_of(task, value) == 0.0
        assert task.tags["marks"] == "yes"
        assert len(goals) == int(task.tags["depth"])


def test_duplicates_repeat_operations_and_say_so() -> None:
    tasks = drawn(knob(duplicates=1.0, depths={"1": 1.0}, novelty="names"), count=100)
    assert all(int(task.tags["duplicates"]) > 0 for task in tasks)
    assert "duplicates" not in drawn(HARD, count=1)[0].tags


def test_what_cannot_be_sampled_is_refused() -> None:
    for fields, message in (
        ({"depths": {"1": 0.0}}, "weight above 0"),
        ({"depths": {"4": 1.0}}, "depths"),
        ({"tools": 2, "depths": {"3": 1.0}}, "a tool per operation"),
        ({"depths": {"1": 1.0}}, "depth of 2 or more"),
        ({"quirks": {"none": 0.0}}, "quirks and docs"),
        ({"marks": 0.5, "duplicates": 0.5}, "duplicates or marks"),
        ({"novelty": []}, "novelty level"),
    ):
        with pytest.raises(ValidationError, match=message):
            knob(**fields)
    with pytest.raises(ConfigError, match="tools with marks"):
        CatalogEnvironment(knob(tools=8, marks=1.0))


def answered(task: Task, session: Session, text: str) -> str:
    call = json.loads(text.split("<tool_call>")[1].split("</tool_call>")[0])
    return session.call(call["name"], call["arguments"])


def taught(task: Task, seed: int) -> list[Message]:
    """Play the teacher through a task, with a session for each phase."""
    lines = [
        f"{i}. {tool.name}({', '.join(arguments_of(task)[tool.name])}): {tool.description}"
        for i, tool in enumerate(task.tool_set.tools, 1)
    ]
    messages = [Message("system", "\n".join(["trial", *lines])), Message("user", task.question)]
    session = Session(task)
    for _ in range(40):
        text = trial_reply(messages, seed)
        messages.append(Message("assistant", text))
        if "<answer>" in text:
            return messages
        if "<experience>" in text:
            session = Session(task)
            messages.append(Message("user", "go"))
        else:
            messages.append(Message("tool", answered(task, session, text)))
    raise AssertionError(f"no answer in {messages}")


def said(messages: Sequence[Message]) -> str:
    return " ".join(message.content for message in messages if message.role == "assistant")


@pytest.mark.parametrize("name", ["all", "marks"])
def test_a_teacher_that_does_not_guess_is_right_under_every_knob(name: str) -> None:
    config = CONFIGS[name]
    plays = [(task, taught(task, seed)) for seed, task in enumerate(drawn(config, count=60))]
    diligent = [(task, messages) for task, messages in plays if "guess" not in said(messages)]
    assert len(diligent) > 15
    for task, messages in diligent:
        answer = re.search("<answer>(.*)</answer>", messages[-1].content)
        assert answer is not None
        assert score_of(task, answer[1]) == 1.0, messages
        assert said(messages).count("<tool_call>") <= config.trial_calls + config.execution_calls


async def test_in_the_sandbox_a_tool_keeps_its_state_within_a_session_and_no_longer() -> None:
    closed = drawn(knob(quirks={"closed": 1}, depths={"1": 1}, novelty="names"), count=1)[0]
    unit = drawn(knob(quirks={"unit": 1}, marks=1, novelty="names"), count=1)[0]
    pool = SandboxPool(ToolServerConfig(isolation=IsolationConfig(required="seccomp")))
    await pool.start()
    try:
        session, other = (SandboxSession(pool, closed.tool_set, seed) for seed in (1, 2))
        for task, opened in ((session, False), (session, True), (other, False)):
            answer = await task.call(closed.tool_set.functions[0], '{"x": "123"}')
            expected = AnswerStatus.OK if opened else AnswerStatus.TOOL_ERROR
            assert answer.status is expected, answer.text
            await task.call(closed.tool_set.functions[0], '{"x": "open"}')
        converting = SandboxSession(pool, unit.tool_set, 1)
        for name in unit.tool_set.functions:
            answer = await converting.call(name, '{"x": "123"}')
            assert answer.text == Session(unit).call(name, {"x": "123"})
            assert re.fullmatch(r"[4-9]+[A-Z]", answer.text)
    finally:
        await pool.close()
