"""The user's own scorer: a Python function, in a sandboxed session or, if trusted, right here."""

import asyncio
import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from envs.errors import ScoringError
from envs.evidence import Evidence
from envs.tasks import Score, without_state
from envs.tools import AnswerStatus, JsonObject, ToolCall, ToolSet

GIVEN = ("answer", "calls", "state", "answers", "question", "expected")
"""Arguments that a scoring function may take; each gets those that it names."""
VALUE = "score"
"""Entry of the returned dict that is the score; without it, the score is the sum of all entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionScorer:
    """Calls `tools`' one function with what `takes` names, and with `arguments`.

    The session is another one than the policy's, so its source and arguments stay unknown to tools.
    """

    tools: ToolSet
    takes: frozenset[str]
    expected: JsonValue = None
    arguments: JsonObject = field(default_factory=dict)

    @property
    def reads_state(self) -> bool:
        return "state" in self.takes

    async def score_episode(self, evidence: Evidence) -> Score:
        """Return what the function returns. Raises ScoringError where that is no score."""
        if self.reads_state and evidence.unreadable:
            return without_state(evidence)
        name = self.tools.tools[0].name
        arguments = given_to(self.takes, evidence, self.expected) | self.arguments
        [answer] = await evidence.run(self.tools, [ToolCall(name=name, arguments=arguments)])
        if answer.status is not AnswerStatus.OK:
            raise ScoringError(f"{name} failed: {answer.text}")
        if answer.truncated:
            raise ScoringError(f"expected a score from {name}, found a text that is too long")
        try:
            found = json.loads(answer.text)
        except (ValueError, RecursionError):
            found = answer.text
        return score_from(found, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedScorer:
    """Calls a function in the worker's own process, with all of its rights.

    `source` is executed once per process. A function that exceeds `limit_s` seconds gives no score,
    and its thread is left behind.
    """

    source: str
    path: str
    """Where the source was read, for tracebacks."""
    function: str
    takes: frozenset[str]
    limit_s: float
    expected: JsonValue = None
    arguments: JsonObject = field(default_factory=dict)

    @property
    def reads_state(self) -> bool:
        return "state" in self.takes

    async def score_episode(self, evidence: Evidence) -> Score:
        """Return what the function returns. Raises ScoringError where that is no score."""
        if self.reads_state and evidence.unreadable:
            return without_state(evidence)
        arguments = given_to(self.takes, evidence, self.expected) | self.arguments
        loop = asyncio.get_running_loop()
        done: asyncio.Future[object] = loop.create_future()

        def settle(result: object, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(ScoringError(f"{type(error).__name__}: {error}"))

        def work() -> None:
            result, fault = None, None
            try:
                result = self._loaded()(**arguments)
            except BaseException as error:  # the function may even call sys.exit
                fault = error
            try:
                loop.call_soon_threadsafe(settle, result, fault)
            except RuntimeError:
                return  # the loop has ended

        # A daemon: a function that never returns must not keep the process from ending.
        threading.Thread(target=work, name=f"scorer {self.function}", daemon=True).start()
        try:
            async with asyncio.timeout(self.limit_s):
                return score_from(await done, self.function)
        except TimeoutError:
            message = f"{self.function} returned nothing within {self.limit_s:g} s"
            raise ScoringError(message) from None

    def _loaded(self) -> Callable[..., object]:
        namespace: dict[str, Any] = {"__name__": "trialrun_scorer", "__file__": self.path}
        exec(compile(self.source, self.path, "exec", dont_inherit=True), namespace)
        found = namespace[self.function]
        assert callable(found), "the source was checked when the task was read"
        return found


def given_to(takes: frozenset[str], evidence: Evidence, expected: JsonValue) -> JsonObject:
    """Return those arguments of a scoring function that it takes."""
    every: Mapping[str, Callable[[], JsonValue]] = {
        "answer": lambda: evidence.answer,
        "answers": lambda: list(evidence.answers),
        "question": lambda: evidence.question,
        "calls": lambda: [call.to_json() for call in evidence.calls],
        "state": lambda: evidence.state,
        "expected": lambda: expected,
    }
    return {name: make() for name, make in every.items() if name in takes}


def score_from(found: object, name: str) -> Score:
    """Return the score that a function returned: a number, or a dict of named numbers.

    Raises ScoringError for anything else, NaN and infinity included.
    """
    if isinstance(found, Mapping) and found:
        parts = {str(part): _number(value, f"{name}[{part!r}]") for part, value in found.items()}
        value = parts.pop(VALUE) if VALUE in parts else sum(parts.values())
        return Score(value, parts)
    return Score(_number(found, name))


def _number(value: object, where: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ScoringError(
            f"expected a finite number, or a dict of them, from {where}, found {value!r:.80}"
        )
    return float(value)
