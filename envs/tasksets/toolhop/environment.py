"""The ToolHop environment: multi-hop questions, each with its own Python tools.

Source: Ye et al., "ToolHop: A Query-Driven Benchmark for Evaluating Large Language Models in
Multi-Hop Tool Use", ACL 2025, arXiv 2501.02506. It reads any file in that format; without a file,
it serves the project's own twelve tasks, which ship next to this module.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from envs.answers import one_spelling, whole_number
from envs.tasks import Mode, Score, Split, Task, Teacher
from envs.tasksets.collection import TaskCollection, split_of
from envs.tasksets.toolhop.config import ToolHopEnvConfig
from envs.tasksets.toolhop.questions import ToolHopQuestion, read_questions
from envs.tasksets.toolhop.teacher import OWN_TASKS, own_teacher
from envs.tasksets.toolhop.tools import tool_set_of
from envs.tools import ToolSet

NAME = "toolhop"
_UNITS = frozenset("$€£¥₹%")
"""With one of them, a text is more than a number."""

ANSWER_FORMAT = (
    "Answer as briefly as possible. Write a date as YYYY-MM-DD, a name as Firstname Lastname, "
    "and a number in digits without leading zeros."
)


@dataclass(frozen=True, slots=True)
class ToolHopScorer:
    """Scores an answer by containment, as ToolHop's evaluation script does.

    Source: `sample_process` in `code/evaluation_open.py` of the data set's repository (Apache-2.0).
    An answer is correct when the expected answer occurs in the reply. Both are lower-cased and
    lose commas, and trailing `.` and `0` characters. That is generous: `15` is found in `1915`, and
    `360`, stripped to `36`, in `2036`. The component `exact` is strict: the texts are equal apart
    from case, commas, surrounding white space and a final full stop; numbers are compared by value.

    Two differences from the script can only raise a score. In the script only the reply loses its
    commas, so that an expected answer with a comma is never found. And it tells typographic forms
    of quotes, minus signs and accents apart.

    Three can only lower it. The script reads the complete last message; here `answer` is what the
    policy marked as its answer. The script also accepts the expected answer in the last tool result
    when the message lacks it. And it finds an expected answer that strips to nothing (`0`) in any
    reply; here that has to match exactly.
    """

    expected: str

    def score(self, answer: str) -> Score:
        """Return 1 or 0 as reward and component `answer`, and the stricter component `exact`."""
        answer, expected = one_spelling(answer), one_spelling(self.expected)
        exact = bool(answer.strip()) and _plain(answer) == _plain(expected)
        needle = expected.rstrip(".0").replace(",", "").lower()
        haystack = answer.rstrip(".0").replace(",", "").lower()
        correct = needle in haystack if needle else exact
        return Score(float(correct), {"answer": float(correct), "exact": float(exact)})


@dataclass(frozen=True, slots=True)
class ToolHopReport:
    """Summary of a file: tasks per split, and how the tools' functions were found."""

    path: Path
    tasks: int
    splits: Mapping[Split, int]
    tools: int
    choices: Mapping[str, int]


class ToolHopEnvironment(TaskCollection):
    """Tasks from a file in ToolHop's format, split by a hash of their id.

    `config.heldout_percent` of the tasks are held out, a tenth of the others are for validation,
    the rest is for training; a task's split depends only on its id and that percentage.
    """

    def __init__(self, config: ToolHopEnvConfig) -> None:
        """Read the complete file. Raises MissingError, DataFileError as `read_questions` does."""
        choices: Counter[str] = Counter()
        tasks: list[Task] = []
        path = data_file_of(config)
        for question in read_questions(path):
            tool_set, chosen = tool_set_of(question)
            choices.update(chosen)
            split = split_of(NAME, str(question.id), config.heldout_percent)
            tasks.append(_task(question, tool_set, split))
        super().__init__(NAME, path, tasks)
        self._choices = dict(choices)
        self._own = not config.path

    @property
    def report(self) -> ToolHopReport:
        """Return the summary of the file; every tool counts once in `choices`."""
        splits: dict[Split, int] = {"train": 0, "validation": 0, "heldout": 0}
        for task in self.all_tasks():
            splits[task.split] += 1
        tools = sum(self._choices.values())
        return ToolHopReport(self.path, sum(splits.values()), splits, tools, self._choices)

    def teacher(self, mode: Mode) -> Teacher:
        """Return the teacher of the project's own tasks. Raises ConfigError for another file."""
        return own_teacher(mode) if self._own else super().teacher(mode)


def data_file_of(config: ToolHopEnvConfig) -> Path:
    """Return the file that `[env]` names, or the file of the project's own tasks."""
    return Path(config.path) if config.path else OWN_TASKS


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
    number = None if _UNITS & set(text) else whole_number(text)
    return text if number is None else f"{number:.12g}"
