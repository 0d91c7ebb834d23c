"""The ToolHop environment: multi-hop questions, each with Python tools of its own.

Source: Ye et al., "ToolHop: A Query-Driven Benchmark for Evaluating Large Language Models in
Multi-Hop Tool Use", ACL 2025, arXiv 2501.02506. Any file in its format will do; without one, the
environment serves the dozen tasks of this project's own that ship beside this module.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.config import EnvConfig
from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Score, Split, Task
from envs.tasksets.toolhop.questions import ToolHopQuestion, read_questions
from envs.tasksets.toolhop.tools import tool_set_of
from envs.tools import ToolSet

NAME = "toolhop"
OWN_TASKS = Path(__file__).parent / "data" / "own12.json"
VALIDATION_PERCENT = 10
"""Share of what is not held out that forms the validation split."""

ANSWER_FORMAT = (
    "Answer as briefly as possible. Write a date as YYYY-MM-DD, a name as Firstname Lastname, "
    "and a number in digits without leading zeros."
)


@dataclass(frozen=True, slots=True)
class ToolHopScorer:
    """Scores an answer as ToolHop's evaluation script does: by containment.

    Source: `sample_process` in `code/evaluation_open.py` of the data set's repository (Apache-2.0).
    An answer is right when the expected answer, lower-cased and with trailing `.` and `0`
    characters stripped, occurs in the reply, lower-cased, stripped alike and without commas. That
    is generous: `15` is found in `1915`, and `360`, stripped to `36`, in `2036`. The part `exact`
    is the strict reading: equal texts once case, commas, surrounding blanks and a final full stop
    are gone, numbers equal by value.

    Three differences, each of which can only lower a score. The script reads the whole last
    message; here `answer` is what the policy marked as its answer. It also accepts the expected
    answer in the last tool result when the message lacks it. And an expected answer that strips to
    nothing (`0`) is found in any reply; here it has to match exactly.
    """

    expected: str

    def score(self, answer: str) -> Score:
        """Return 1 or 0 as the reward and as the part `answer`, and the stricter part `exact`."""
        exact = bool(answer.strip()) and _plain(answer) == _plain(self.expected)
        needle = self.expected.rstrip(".0").lower()
        haystack = answer.rstrip(".0").replace(",", "").lower()
        right = needle in haystack if needle else exact
        return Score(float(right), {"answer": float(right), "exact": float(exact)})


@dataclass(frozen=True, slots=True)
class ToolHopReport:
    """What was read: tasks per split, and tools by how their function was found in the sources."""

    path: Path
    tasks: int
    splits: Mapping[Split, int]
    tools: int
    choices: Mapping[str, int]


class ToolHopEnvironment:
    """Tasks from a file in ToolHop's format, split by a hash of their id.

    `config.heldout_percent` of the tasks are held out, a tenth of the others are for validation,
    the rest is for training; a task's split depends on nothing but its id and that percentage.
    """

    def __init__(self, config: EnvConfig) -> None:
        """Read the whole file. Raises MissingError and DataFileError as `read_questions` does."""
        self.path = data_file_of(config)
        choices: Counter[str] = Counter()
        tasks: list[Task] = []
        for question in read_questions(self.path):
            tool_set, chosen = tool_set_of(question)
            choices.update(chosen)
            tasks.append(_task(question, tool_set, split_of(question.id, config.heldout_percent)))
        self._tasks = tuple(tasks)
        self._choices = dict(choices)

    @property
    def name(self) -> str:
        return NAME

    @property
    def report(self) -> ToolHopReport:
        """Say what was read and how; every tool counts once in `choices`."""
        splits: dict[Split, int] = {"train": 0, "validation": 0, "heldout": 0}
        for task in self._tasks:
            splits[task.split] += 1
        return ToolHopReport(
            self.path, len(self._tasks), splits, sum(self._choices.values()), self._choices
        )

    def all_tasks(self) -> Sequence[Task]:
        """Return every task of the file, whatever its split, in file order."""
        return self._tasks

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Return `count` tasks of `split`, or all when None, in an order drawn from `seed`.

        Raises ConfigError where the split has fewer than `count` tasks, or none.
        """
        pool = [task for task in self._tasks if task.split == split]
        if not pool:
            raise ConfigError(
                f"expected tasks in the {split} split of {self.path}, found none among "
                f"{len(self._tasks)}: choose another split or change env.heldout_percent"
            )
        if count is not None and count > len(pool):
            raise ConfigError(
                f"expected {count} tasks in the {split} split of {self.path}, found {len(pool)}: "
                "ask for fewer, or set env.path to a larger file"
            )
        drawn = sorted(pool, key=lambda task: stable_hash(NAME, "draw", seed, task.id))
        return tuple(drawn[:count])


def data_file_of(config: EnvConfig) -> Path:
    """Return the file that `[env]` names, or that of the project's own tasks."""
    return Path(config.path) if config.path else OWN_TASKS


def split_of(question_id: int | str, heldout_percent: int) -> Split:
    """Return the split of a question, from its id alone."""
    if stable_hash(NAME, "heldout", str(question_id)) % 100 < heldout_percent:
        return "heldout"
    if stable_hash(NAME, "validation", str(question_id)) % 100 < VALIDATION_PERCENT:
        return "validation"
    return "train"


def _task(question: ToolHopQuestion, tool_set: ToolSet, split: Split) -> Task:
    return Task(
        id=f"{NAME}-{question.id}",
        environment=NAME,
        split=split,
        question=f"{question.question}\n{ANSWER_FORMAT}",
        tool_set=tool_set,
        scorer=ToolHopScorer(question.answer),
        tags={
            "hops": str(len(question.sub_task)),
            "answer_type": question.answer_type.lower(),
            "domain": question.domain.lower(),
        },
    )


def _plain(text: str) -> str:
    text = text.strip().replace(",", "").lower()
    text = text[:-1].rstrip() if text.endswith(".") else text
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text
