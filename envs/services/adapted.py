"""Sessions on adapted tool sets: calls are translated to the base set, and answers back.

Injected faults and latency depend only on the session's seed and the index of the call in the
session. So a repeated episode, or calls replayed in order, meet the same faults.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from envs.perturbation.type_drift import converted
from envs.seeds import stable_hash
from envs.services.wrapper import SessionWrapper
from envs.tools import (
    Adaptation,
    AnswerStatus,
    CallRule,
    JsonObject,
    SessionPurpose,
    ToolAnswer,
    ToolCall,
    ToolService,
    ToolSession,
    ToolSet,
    ToolSpec,
)

Sleep = Callable[[float], Awaitable[None]]

FAULTS = (
    "503 service temporarily unavailable: try again",
    "500 internal error: try again",
    "429 too many requests: try again",
    "connection reset by peer: try again",
)
_SHORT_NAME = 2
"""Names up to this length may also be words: they are translated only where quoted or assigned."""


_OURS = "trialrun:"
"""Start of names that no tool has and no policy can call."""
_PAST = f"{_OURS}base:"


def past_adaptation(tool_set: ToolSet, call: ToolCall) -> ToolCall:
    """Return a call of a tool of `tool_set.root`, for a session on `tool_set`."""
    if tool_set.adaptation is None or call.name.startswith(_OURS):
        return call
    return ToolCall(name=_PAST + call.name, arguments=call.arguments)


def call_of_root(tool_set: ToolSet, call: ToolCall) -> ToolCall | None:
    """Return the call of `tool_set.root` that `call` becomes; None if it does not reach it."""
    while tool_set.adaptation is not None:
        translated = Translator(tool_set, tool_set.adaptation).to_base(call)
        if not isinstance(translated, ToolCall):
            return None
        call, tool_set = translated, tool_set.adaptation.base
    return call


class AdaptedTools:
    """ToolService that serves adapted tool sets on top of `inner`, and passes other sets to it.

    `sleep` waits for injected latency; a replay passes one that does not wait.
    """

    def __init__(self, inner: ToolService, sleep: Sleep = asyncio.sleep) -> None:
        self._inner = inner
        self._sleep = sleep

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ToolSession:
        """Open a session in its initial state. Raises ToolServerError or DeadlineError."""
        if tool_set.adaptation is None:
            return await self._inner.open_session(tool_set, seed, purpose, episode)
        base = await self.open_session(tool_set.adaptation.base, seed, purpose, episode)
        return AdaptedSession(base, tool_set, seed, self._sleep)

    async def close(self) -> None:
        await self._inner.close()


class AdaptedSession(SessionWrapper):
    """Live tools under other names and parameters, with injected faults and latency."""

    def __init__(self, base: ToolSession, tool_set: ToolSet, seed: int, sleep: Sleep) -> None:
        assert tool_set.adaptation is not None, "AdaptedTools wraps only adapted sets"
        super().__init__(base)
        self._is_last = tool_set.adaptation.base.adaptation is None
        self._translator = Translator(tool_set, tool_set.adaptation)
        self._faults = FaultSchedule(tool_set.adaptation, seed)
        self._sleep = sleep
        self._calls = 0

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order; one answer per call. Raises ToolServerError or DeadlineError.

        Calls of `past_adaptation` reach the base as they are, and count in no schedule of faults.
        """
        if any(call.name.startswith(_OURS) for call in calls):
            return await super().call([self._for_base(call) for call in calls])
        first = self._calls
        self._calls += len(calls)
        waits = [self._faults.latency_s(first + i) for i in range(len(calls))]
        if any(waits):
            await self._sleep(sum(waits))
        plan = [self._plan(first + i, call) for i, call in enumerate(calls)]
        forwarded = [step for step in plan if isinstance(step, ToolCall)]
        replies = iter(await super().call(forwarded) if forwarded else ())
        answers = [
            step
            if isinstance(step, ToolAnswer)
            else self._translator.from_base(call, next(replies))
            for call, step in zip(calls, plan, strict=True)
        ]
        return [
            answer.model_copy(update={"seconds": answer.seconds + wait}) if wait else answer
            for answer, wait in zip(answers, waits, strict=True)
        ]

    def _for_base(self, call: ToolCall) -> ToolCall:
        name = call.name.removeprefix(_PAST) if self._is_last else call.name
        return ToolCall(name=name, arguments=call.arguments)

    def _plan(self, index: int, call: ToolCall) -> ToolCall | ToolAnswer:
        fault = self._faults.fault(index)
        return _error(fault) if fault else self._translator.to_base(call)


class FaultSchedule:
    """The faults and latency of each call of a session, derived from the seeds alone."""

    def __init__(self, adaptation: Adaptation, seed: int) -> None:
        self._adaptation = adaptation
        self._seed = seed

    def fault(self, index: int) -> str:
        """Return the error text that call number `index` gets, or an empty string."""
        if self._share("fault", index) >= self._adaptation.fault_rate:
            return ""
        return FAULTS[self._hash("which fault", index) % len(FAULTS)]

    def latency_s(self, index: int) -> float:
        """Return the seconds that call number `index` waits before it runs."""
        slow = self._share("slow", index) < self._adaptation.slow_rate
        return self._adaptation.latency_s if slow else 0.0

    def _share(self, what: str, index: int) -> float:
        return self._hash(what, index) / 2**63

    def _hash(self, what: str, index: int) -> int:
        return stable_hash(what, self._adaptation.seed, self._seed, index)


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of the base set that may occur in its errors, mapped to the policy's names."""

    pattern: re.Pattern[str]
    adapted: dict[str, str]


class Translator:
    """Translates calls of an adapted set to calls of its base, and errors of the base back."""

    def __init__(self, tool_set: ToolSet, adaptation: Adaptation) -> None:
        rules = {}
        for tool, rule in zip(tool_set.tools, adaptation.rules, strict=True):
            rules.setdefault(tool.name, rule)
        self._tools = tool_set.tools
        self._rules: dict[str, CallRule] = rules
        self._tool_names = _tool_names(self._rules, adaptation.base)
        self._names: dict[str, _Names] = {}

    def _renewed(self, tools: Sequence[ToolSpec]) -> tuple[ToolSpec, ...]:
        """Return the policy's tools if those of the base are now `tools`.

        Tools that have come keep their own names, unless an adapted tool has the name; distractors
        stay.
        """
        known = {rule.target for rule in self._rules.values()}
        base = {tool.name for tool in tools}
        for tool in tools:
            if tool.name not in known:
                self._rules.setdefault(tool.name, CallRule(target=tool.name))
        came = [t for t in tools if t.name not in known and self._rules[t.name].target == t.name]
        stay = [
            tool
            for tool in self._tools
            if not (target := self._rules[tool.name].target) or target in base
        ]
        return (*stay, *came)

    def to_base(self, call: ToolCall) -> ToolCall | ToolAnswer:
        """Return the call of the base; or the answer, if the base need not be called."""
        rule = self._rules.get(call.name)
        if rule is None:
            return _error(f"no tool {call.name!r}; tools are: {', '.join(self._rules)}")
        if not rule.target:
            return ToolAnswer(status=AnswerStatus.OK, text=rule.reply, seconds=0.0)
        arguments: JsonObject = {}
        renamed = set(rule.parameters.values()) - rule.parameters.keys()
        for name, value in call.arguments.items():
            if name in renamed:
                return _error(f"unexpected argument {name!r}")
            try:
                value = converted(value, rule.types[name]) if name in rule.types else value
            except ValueError as error:
                return _error(f"argument {name!r}: {error}")
            if target := rule.parameters.get(name, name):
                arguments[target] = value
        return ToolCall(name=rule.target, arguments=arguments)

    def from_base(self, call: ToolCall, answer: ToolAnswer) -> ToolAnswer:
        """Return the answer to `call` as the policy sees it: errors use the policy's names."""
        if answer.tools is not None:
            answer = answer.model_copy(update={"tools": self._renewed(answer.tools)})
        if answer.status is not AnswerStatus.TOOL_ERROR:
            return answer
        names = self._names_of(call.name)
        text = names.pattern.sub(lambda found: names.adapted[found[0]], answer.text)
        return answer if text == answer.text else answer.model_copy(update={"text": text})

    def _names_of(self, tool: str) -> _Names:
        if tool not in self._names:
            adapted = dict(self._tool_names)
            for mine, theirs in self._rules[tool].parameters.items():
                if theirs:
                    adapted[theirs] = mine
            self._names[tool] = _Names(_pattern(adapted), adapted)
        return self._names[tool]


def _tool_names(rules: dict[str, CallRule], base: ToolSet) -> dict[str, str]:
    """Map names of the base's tools, and of the functions behind them, to adapted names."""
    mine = {rule.target: name for name, rule in rules.items() if rule.target}
    names: dict[str, str] = {}
    for tool, function in zip(base.tools, base.functions, strict=False):
        if tool.name in mine:
            names.setdefault(function, mine[tool.name])
    return {**names, **mine}


def _pattern(names: dict[str, str]) -> re.Pattern[str]:
    """Return a pattern of the names as complete words; short ones only if quoted or assigned."""
    changed = sorted((name for name in names if names[name] != name), key=len, reverse=True)
    options = [
        rf"(?<=['\"`]){re.escape(name)}(?=['\"`])|(?<![\w.]){re.escape(name)}(?==)"
        if len(name) <= _SHORT_NAME
        else rf"(?<![\w]){re.escape(name)}(?![\w])"
        for name in changed
    ]
    return re.compile("|".join(options) if options else r"(?!)")


def _error(text: str) -> ToolAnswer:
    return ToolAnswer(status=AnswerStatus.TOOL_ERROR, text=text, seconds=0.0)
