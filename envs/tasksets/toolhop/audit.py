"""An audit of a ToolHop file: whether its tools run and can answer its sub-questions."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from envs.argument_check import check_arguments
from envs.seeds import stable_hash
from envs.tasksets.toolhop.environment import ToolHopScorer
from envs.tasksets.toolhop.example_calls import example_calls
from envs.tasksets.toolhop.questions import ToolHopQuestion
from envs.tasksets.toolhop.search import candidate_calls
from envs.tasksets.toolhop.tools import tool_set_of
from envs.tools import AnswerStatus, JsonObject, ToolAnswer, ToolCall, ToolService, ToolSet

_AT_ONCE = 16
_CALLS_PER_REQUEST = 20


@dataclass(frozen=True, slots=True)
class ToolAudit:
    """Results of the calls of one tool; `reached` if an answer contained the expected text."""

    question: str
    sub_question: str
    tool: str
    statuses: dict[AnswerStatus, int]
    first_error: str
    reached: bool
    reached_by_example: bool
    """Whether a call that the source itself shows already gave the expected text."""
    final: bool
    """Whether the expected text is the answer to the question."""

    @property
    def answered(self) -> bool:
        """Whether a call returned a value rather than an error."""
        return AnswerStatus.OK in self.statuses


@dataclass(frozen=True, slots=True)
class Audit:
    """Results for all tools of a file, in file order."""

    tools: tuple[ToolAudit, ...]

    def to_json(self) -> JsonObject:
        """Return counts of questions, tools, calls by status, and expected answers reached."""
        calls: Counter[str] = Counter()
        for tool in self.tools:
            calls.update({status.value: count for status, count in tool.statuses.items()})
        questions = {tool.question for tool in self.tools}
        missed = {tool.question for tool in self.tools if not tool.reached}
        final = {tool.question for tool in self.tools if tool.reached and tool.final}
        return {
            "questions": len(questions),
            "tools": len(self.tools),
            "tools_that_answered": sum(tool.answered for tool in self.tools),
            "calls": dict(calls),
            "sub_questions_reached": sum(tool.reached for tool in self.tools),
            "sub_questions_reached_by_the_sources_example": sum(
                tool.reached_by_example for tool in self.tools
            ),
            "questions_with_every_hop_reached": len(questions - missed),
            "questions_with_final_hop_reached": len(final),
        }


async def audit(
    questions: Sequence[ToolHopQuestion], tools: ToolService, calls_per_tool: int, seed: int = 0
) -> Audit:
    """Call every tool with up to `calls_per_tool` schema-valid arguments, and as its source shows.

    Sources often end with example calls: those are made first, if a policy could make them. Other
    arguments are sampled from enumerations, examples, and names and numbers in the sub-question and
    in the answers of the other hops; the sub-question's own answer is never used. The search is
    not exhaustive: an answer that it does not reach may still be reachable. Raises ToolServerError
    or DeadlineError.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(question: ToolHopQuestion, tool_set: ToolSet, index: int) -> ToolAudit:
        async with slots:
            return await _audit_tool(question, tool_set, index, tools, (calls_per_tool, seed))

    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(one(question, tool_set, index))
            for question in questions
            for tool_set in [tool_set_of(question)[0]]
            for index in range(len(tool_set.tools))
        ]
    return Audit(tuple(task.result() for task in running))


async def _audit_tool(
    question: ToolHopQuestion,
    tool_set: ToolSet,
    index: int,
    tools: ToolService,
    search: tuple[int, int],
) -> ToolAudit:
    spec, sub_question = tool_set.tools[index], list(question.tools)[index]
    limit, seed = search
    expected = question.sub_task.get(sub_question, "")
    known = [answer for key, answer in question.sub_task.items() if key != sub_question]
    candidates = candidate_calls(
        spec, [sub_question, *known], limit, stable_hash(seed, question.id, spec.name)
    )
    shown = list(example_calls(tool_set.sources[index], tool_set.functions[index]))
    examples = [arguments for arguments in shown if not check_arguments(spec, arguments)]
    others = [arguments for arguments in candidates if not check_arguments(spec, arguments)]
    calls = [ToolCall(name=spec.name, arguments=a) for a in (*examples, *others)]
    answers = await _answers(tools, tool_set, calls, seed)
    holds = [bool(expected) and _holds(answer, expected) for answer in answers]
    errors = [answer.text for answer in answers if answer.status is not AnswerStatus.OK]
    return ToolAudit(
        question=str(question.id),
        sub_question=sub_question,
        tool=spec.name,
        statuses=dict(Counter(answer.status for answer in answers)),
        first_error=errors[0] if errors else "",
        reached=any(holds),
        reached_by_example=any(holds[: len(examples)]),
        final=expected == question.answer,
    )


async def _answers(
    tools: ToolService, tool_set: ToolSet, calls: Sequence[ToolCall], seed: int
) -> list[ToolAnswer]:
    session = await tools.open_session(tool_set, seed, "trial")
    try:
        answers: list[ToolAnswer] = []
        for start in range(0, len(calls), _CALLS_PER_REQUEST):
            answers += await session.call(calls[start : start + _CALLS_PER_REQUEST])
        return answers
    finally:
        await session.close()


def _holds(answer: ToolAnswer, expected: str) -> bool:
    if answer.status is not AnswerStatus.OK:
        return False
    return ToolHopScorer(expected).score(answer.text).reward > 0
