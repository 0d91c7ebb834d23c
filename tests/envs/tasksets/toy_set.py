"""A task set as a newcomer would write it: a section, an environment, a line of the registry."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from pydantic import Field

from envs.config import EnvConfig, Section
from envs.messages import Message
from envs.seeds import stable_hash
from envs.tasks import Environment, Mode, Score, Split, Task, Teacher
from envs.tasksets.registry import TASK_SETS, TaskSet, TaskSets
from envs.tools import ToolSet, ToolSpec

ADD = ToolSpec(
    name="add",
    description="Add two numbers.",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
)


class ToySection(Section):
    """`[env.toy]`."""

    largest: int = Field(default=9, ge=1)
    """Largest number."""


class ToyEnvConfig(EnvConfig):
    """`[env]` with `name = "toy"`."""

    name: str = "toy"
    path: str = Field(default="sums", min_length=3)
    """A key that other task sets have as well, with a rule of its own."""
    must: int
    """A key without a default."""
    toy: ToySection = ToySection()


@dataclass(frozen=True, slots=True)
class Equal:
    expected: str

    def score(self, answer: str) -> Score:
        return Score(float(answer == self.expected))


class ToyEnvironment(Environment):
    """Endless sums."""

    def __init__(self, config: ToyEnvConfig) -> None:
        self._largest = config.toy.largest

    @property
    def name(self) -> str:
        return "toy"

    @property
    def endless(self) -> bool:
        return True

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        return [self._task(split, seed, index) for index in range(count or 0)]

    def teacher(self, mode: Mode) -> Teacher:
        return Teacher(direct_reply, lambda _, full: full)

    def _task(self, split: Split, seed: int, index: int) -> Task:
        rng = Random(stable_hash("toy", split, seed, index))
        a, b = (rng.randint(0, self._largest) for _ in "ab")
        source = "def add(a, b):\n    return a + b\n"
        tools = ToolSet(tools=(ADD,), sources=(source,), functions=("add",))
        identity = f"toy-{split}-{seed}-{index}"
        return Task(identity, "toy", split, f"{a} {b}", tools, Equal(str(a + b)))


def direct_reply(messages: Sequence[Message], seed: int) -> str:
    last = messages[-1]
    if last.role == "tool":
        return f"<answer>{re.findall(r'[0-9]+', last.content)[0]}</answer>"
    a, b = next(m.content for m in messages if m.role == "user").split()[:2]
    return f'<tool_call>{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'


WITH_TOY: TaskSets = {
    **TASK_SETS,
    "toy": TaskSet(ToyEnvConfig, lambda config, _: ToyEnvironment(config)),
}
