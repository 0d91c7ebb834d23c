"""Scorers by calls: gold calls, probe calls, and the path that the policy took."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from envs.errors import ScoringError
from envs.evidence import READ_STATE, Evidence, state_of
from envs.scoring.states import first_difference
from envs.tasks import Score, without_state
from envs.tools import AnswerStatus, JsonObject, ToolAnswer, ToolCall

_SHOWN = 120
_NEVER_EQUAL = ("openenv.episode_id", "openenv_*.episode_id")
"""Paths in states that differ between equal episodes: OpenEnv gives each session a new id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldCalls:
    """Correct if the policy left the tools as the gold calls do, in a fresh session from the same
    start. `turns[i]` are the gold calls after message i of the user, and states are compared after
    each; a single list is compared at the end only.

    With `probes`, the answers to these calls are compared in place of states: for tools whose state
    cannot be read, such as those of an MCP server.
    """

    turns: tuple[tuple[ToolCall, ...], ...]
    probes: tuple[ToolCall, ...] = ()
    ignore: tuple[str, ...] = ()

    @property
    def reads_state(self) -> bool:
        return not self.probes

    async def score_episode(self, evidence: Evidence) -> Score:
        """Return 1 or 0, and the share of the user's turns after which all was as it should be.

        0 where the state that the policy left cannot be read.

        Raises ScoringError if a gold call fails.
        """
        if self.probes:
            return await self._by_probes(evidence)
        if evidence.unreadable:
            return without_state(evidence)
        turns = self.turns
        states = evidence.states if len(turns) > 1 else evidence.states[-1:]
        if len(states) != len(turns):
            raise ScoringError(
                f"expected gold calls for {len(states)} turns of the user, found {len(turns)}"
            )
        expected = await self._expected(evidence)
        ignored = (*self.ignore, *_NEVER_EQUAL)
        differences = [
            first_difference(json.loads(found), json.loads(gold), ignored)
            for found, gold in zip(states, expected, strict=True)
        ]
        return _score(differences, "turns")

    async def _expected(self, evidence: Evidence) -> list[str]:
        """Return the state after the gold calls of each turn."""
        calls = [call for turn in self.turns for call in (*turn, READ_STATE)]
        answers = await evidence.run(evidence.tool_set, calls)
        states: list[str] = []
        for call, answer in zip(calls, answers, strict=True):
            if call is READ_STATE:
                states.append(state_of(answer))
            else:
                _check_gold(call, answer)
        return states

    async def _by_probes(self, evidence: Evidence) -> Score:
        gold = [call for turn in self.turns for call in turn]
        answers = await evidence.run(evidence.tool_set, [*gold, *self.probes])
        for call, answer in zip(gold, answers, strict=False):
            _check_gold(call, answer)
        found = await probed(evidence, self.probes)
        differences = [
            ""
            if left.status is right.status and _alike(left.text, right.text)
            else f"{call.name}: found {left.text[:_SHOWN]!r}, expected {right.text[:_SHOWN]!r}"
            for call, left, right in zip(self.probes, found, answers[len(gold) :], strict=True)
        ]
        return _score(differences, "probes")


@dataclass(frozen=True, slots=True)
class Probe:
    """A call in the policy's own session after its answer, and the value expected of it.

    `within`: whether the answer must only contain the expected text.
    """

    call: ToolCall
    expected: JsonValue
    within: bool = False

    def difference(self, answer: ToolAnswer) -> str:
        """Return how an answer differs from what is expected, empty if it does not."""
        text = answer.text
        if answer.status is not AnswerStatus.OK:
            return f"{self.call.name} failed: {text[:_SHOWN]}"
        if self.within:
            right = str(self.expected) in text
        else:
            right = text == self.expected or _is(text, self.expected)
        return (
            ""
            if right
            else (f"{self.call.name}: found {text[:_SHOWN]!r}, expected {self.expected!r}")
        )


@dataclass(frozen=True, slots=True)
class ProbeCalls:
    """The share of probes whose answer is the expected one."""

    probes: tuple[Probe, ...]

    @property
    def reads_state(self) -> bool:
        return False

    async def score_episode(self, evidence: Evidence) -> Score:
        """Return a share in [0, 1]. Raises ScoringError."""
        answers = await probed(evidence, [probe.call for probe in self.probes])
        told = [p.difference(a) for p, a in zip(self.probes, answers, strict=True)]
        share = sum(not difference for difference in told) / len(told)
        return Score(share, notes=_notes(told))


@dataclass(frozen=True, slots=True)
class Step:
    """A call that the policy should make; `arguments` are those that matter."""

    name: str
    arguments: JsonObject

    def is_made_by(self, name: str, arguments: JsonObject) -> bool:
        """Whether a call with this name and these arguments is this step."""
        given = all(
            key in arguments and _same(arguments[key], value)
            for key, value in self.arguments.items()
        )
        return name == self.name and given


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPath:
    """Correct if the policy made every step with success: in this order, others in between
    (`subsequence`), or in any order, each by a call of its own (`set`).
    """

    steps: tuple[Step, ...]
    order: Literal["subsequence", "set"] = "subsequence"

    @property
    def reads_state(self) -> bool:
        return False

    async def score_episode(self, evidence: Evidence) -> Score:
        """Return 1 or 0, and the share of the steps that were made."""
        made = [
            (call.name, call.arguments) for call in evidence.calls if call.status is AnswerStatus.OK
        ]
        missing = _missing_from_set(self.steps, made) if self.order == "set" else []
        if self.order == "subsequence":
            calls = iter(made)
            missing = [step for step in self.steps if not any(step.is_made_by(*c) for c in calls)]
        told = [f"{step.name} {json.dumps(step.arguments)} was not called" for step in missing]
        share = 1 - len(missing) / len(self.steps)
        return Score(float(not missing), {"share": share}, _notes(told))


def _missing_from_set(steps: Sequence[Step], made: Sequence[tuple[str, JsonObject]]) -> list[Step]:
    """Return the steps without a call of their own, as few as possible (bipartite matching)."""
    step_of: dict[int, int] = {}

    def place(step: int, tried: set[int]) -> bool:
        for call, what in enumerate(made):
            if call not in tried and steps[step].is_made_by(*what):
                tried.add(call)
                if call not in step_of or place(step_of[call], tried):
                    step_of[call] = step
                    return True
        return False

    return [step for number, step in enumerate(steps) if not place(number, set())]


async def probed(evidence: Evidence, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
    """Return the answers to `calls` in the session in which the policy acted.

    Raises ScoringError where the session fails.
    """
    answers = await evidence.execution.call(list(calls))
    for call, answer in zip(calls, answers, strict=True):
        if answer.status is AnswerStatus.INFRA_ERROR:
            raise ScoringError(f"{call.name}: {answer.text}")
    return answers


def _check_gold(call: ToolCall, answer: ToolAnswer) -> None:
    if answer.status is not AnswerStatus.OK:
        raise ScoringError(f"the gold call {call.name} failed, correct it: {answer.text}")


def _score(differences: Sequence[str], of: str) -> Score:
    share = sum(not difference for difference in differences) / len(differences)
    return Score(float(share == 1), {of: share}, _notes(differences))


def _notes(differences: Sequence[str]) -> dict[str, str]:
    told = [difference for difference in differences if difference]
    return {"": "; ".join(told)} if told else {}


def _alike(left: str, right: str) -> bool:
    """Whether two texts are equal, or the same JSON: fields have the order in which they came."""
    if left == right:
        return True
    try:
        return _is(left, json.loads(right))
    except (ValueError, RecursionError):
        return False


def _is(text: str, expected: JsonValue) -> bool:
    try:
        return _same(json.loads(text), expected)
    except (ValueError, RecursionError):
        return False


def _same(found: JsonValue, expected: JsonValue) -> bool:
    return not first_difference(found, expected, ())
