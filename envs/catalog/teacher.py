"""The scripted teacher of the catalog: a diligent, sometimes lazy, sometimes forgetful policy.

It knows nothing hidden. Each turn is a pure function of the conversation so far and the episode's
seed, so it plays through the same runner and against the same tools as the policy that learns from
it. It is imperfect on purpose: what reinforcement learning mends later is mostly its laziness.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from envs.catalog.instances import DOCUMENTED_ARGUMENT
from envs.catalog.operations import recognise
from envs.messages import Message
from envs.seeds import stable_hash

PROBE = "123"
"""The value of every trial call: one fixed text makes an operation readable from its result."""
LAZY = 0.5
"""Chance, after a trial that found something else, to stop trying and to guess."""
FORGETFUL = 0.1
"""Chance to leave a known quirk out of the first call of the execution."""
SCARCE = 0.3
"""Share of teacher episodes with few trials or none."""
SCARCE_CALLS = 3
"""Most trials of such an episode."""

_TOOL_LINE = re.compile(r"^(?:\d+\. )?(\w+)(?:\(\w*\))?: (.*)$", re.MULTILINE)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_KEY_ERROR = re.compile(r"needs key=(\w+)")
_ARGUMENT_ERROR = re.compile(r"use (\w+)")


@dataclass(slots=True)
class _Tool:
    """What the conversation says about one tool."""

    number: int
    name: str
    doc: str
    argument: str = DOCUMENTED_ARGUMENT
    key: str = ""
    result: str = ""

    @property
    def repair(self) -> str:
        """The quirk in words; empty while none is known."""
        if self.key:
            return f"needs key={self.key}"
        return f"use {self.argument}" if self.argument != DOCUMENTED_ARGUMENT else ""

    def call(self, value: str, *, plain: bool = False) -> str:
        """Write a call; `plain` as the doc has it."""
        arguments = {DOCUMENTED_ARGUMENT if plain else self.argument: value}
        if self.key and not plain:
            arguments["key"] = self.key
        return f"<tool_call>{json.dumps({'name': self.name, 'arguments': arguments})}</tool_call>"


@dataclass(slots=True)
class _View:
    """The conversation as the teacher reads it."""

    tools: list[_Tool]
    goal: str
    value: str
    executing: bool
    turns: int = 0
    last: _Tool | None = None
    failed: bool = False
    blocked: bool = False
    chosen: str = ""
    executed: list[str] = field(default_factory=list)


def trial_reply(messages: Sequence[Message], seed: int) -> str:
    """Return the trial teacher's next turn: probe in order, repair, stop when found, execute."""
    view = _read(messages, executing=False)
    rng = Random(stable_hash("catalog teacher", seed, view.turns))
    return _execution_turn(view, rng) if view.executing else _trial_turn(view, rng)


def direct_reply(messages: Sequence[Message], seed: int) -> str:
    """Return the next turn of the direct teacher: call what the docs suggest, and answer."""
    view = _read(messages, executing=True)
    rng = Random(stable_hash("catalog direct teacher", seed))
    if not view.chosen:
        view.chosen = _guess(view, rng).name
    return _execution_turn(view, rng)


def draw_trial_calls(seed: int, full: int) -> int:
    """Draw the trial budget of a teacher episode: mostly `full`, at times too small."""
    rng = Random(stable_hash("catalog teacher budget", seed))
    return min(full, rng.randint(0, SCARCE_CALLS)) if rng.random() < SCARCE else full


def _trial_turn(view: _View, rng: Random) -> str:
    last = view.last
    if view.blocked:
        return _conclude("", "guess", _guess(view, rng), view)
    if last is None:
        return f"try 1. {view.tools[0].call(PROBE)}"
    if view.failed:
        return f"{last.repair}: try {last.number}. {last.call(PROBE)}"
    found = recognise(PROBE, last.result)
    note = f"got {found.name if found else last.result}, want {view.goal}: "
    if found is not None and found.name == view.goal:
        return _conclude(note, "done", last, view)
    untried = [tool for tool in view.tools if not tool.result]
    if not untried or rng.random() < LAZY:
        return _conclude(note, "guess", _guess(view, rng), view)
    return f"{note}try {untried[0].number}. {untried[0].call(PROBE)}"


def _conclude(note: str, verdict: str, tool: _Tool, view: _View) -> str:
    repair = f", {tool.repair}" if tool.repair else ""
    experience = f"<experience>{view.goal}: {tool.number}. {tool.name}{repair}</experience>"
    return f"{note}{verdict} {tool.number}. {experience}"


def _execution_turn(view: _View, rng: Random) -> str:
    tool = next((tool for tool in view.tools if tool.name == view.chosen), view.tools[0])
    if view.failed:
        return f"{tool.repair}: call {tool.number}. {tool.call(view.value)}"
    if view.executed:
        return f"<answer>{view.executed[-1]}</answer>"
    return f"call {tool.number}. {tool.call(view.value, plain=rng.random() < FORGETFUL)}"


def _guess(view: _View, rng: Random) -> _Tool:
    """Choose among the tools not seen to do something else: by the docs, else a vague one."""
    open_tools = [tool for tool in view.tools if not tool.result] or view.tools
    named = [tool for tool in open_tools if tool.doc.split()[0] == view.goal]
    vague = [tool for tool in open_tools if tool.doc.split()[0] == "edit"]
    return rng.choice(named or vague or open_tools)


def _read(messages: Sequence[Message], *, executing: bool) -> _View:
    listed = enumerate(_TOOL_LINE.findall(messages[0].content), start=1)
    goal, value = messages[1].content.split()
    tools = [_Tool(number, name, doc) for number, (name, doc) in listed]
    view = _View(tools, goal, value, executing)
    for message in messages[2:]:
        if message.role == "assistant":
            _note_turn(view, message.content)
        elif message.role == "tool":
            _note_answer(view, message.content)
    return view


def _note_turn(view: _View, text: str) -> None:
    view.turns += 1
    view.failed = False
    call = _CALL.search(text)
    if call is not None:
        name = json.loads(call[1])["name"]
        view.last = next((tool for tool in view.tools if tool.name == name), None)
        if view.executing and view.last is not None:
            view.chosen = view.last.name
    experience = re.search(r"<experience>\S+: \d+\. (\w+)", text)
    if experience is not None:
        view.executing, view.chosen = True, experience[1]


def _note_answer(view: _View, text: str) -> None:
    key, argument = _KEY_ERROR.search(text), _ARGUMENT_ERROR.search(text)
    if view.last is not None and key is not None:
        view.last.key, view.failed = key[1], True
    elif view.last is not None and argument is not None:
        view.last.argument, view.failed = argument[1], True
    elif text.startswith("no "):
        view.blocked = True
    elif view.executing:
        view.executed.append(text)
    elif view.last is not None:
        view.last.result = text
