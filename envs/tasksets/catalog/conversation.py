"""Parsing of an episode's messages for the scripted teacher: tools, goals and findings."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from envs.messages import Message
from envs.tasksets.catalog.operations import PROBE, recognise
from envs.tasksets.catalog.quirks import (
    BUSY,
    CLOSED,
    DOCUMENTED_ARGUMENT,
    OPENING,
    SWAPPED,
    SWITCH_ARGUMENT,
    SWITCH_VALUE,
    read_probe,
    shifted,
)

_TOOL_LINE = re.compile(r"^(?:\d+\. )?(\w+)(\([\w, ]*\))?: (.*)$", re.MULTILINE)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_EXPERIENCE = re.compile(r"<experience>(.*?)</experience>", re.DOTALL)
_CLAUSE = re.compile(r"(\S+) \d+\. (\w+)")
_TROUBLE = re.compile(rf"error: .*?({SWAPPED}|{BUSY}$|{CLOSED}|needs key=\w+|use \w+)")


@dataclass(slots=True, kw_only=True)
class KnownTool:
    """What the conversation so far shows about one tool."""

    number: int
    name: str
    arguments: str
    """The documented arguments, in brackets."""
    doc: str
    argument: str = DOCUMENTED_ARGUMENT
    key: str = ""
    swapped: bool = False
    closed: bool = False
    opened: bool = False
    """Whether the tool was opened in the current phase."""
    offset: int = 0
    result: str = ""
    """Its result for the probe, converted back from the tool's unit."""

    @property
    def repair(self) -> str:
        """The known quirk in words; empty if none is known."""
        if self.key:
            return f"needs key={self.key}"
        if self.swapped:
            return SWAPPED
        if self.closed:
            return CLOSED
        if self.offset:
            return f"off by {self.offset}"
        return f"use {self.argument}" if self.argument != DOCUMENTED_ARGUMENT else ""

    @property
    def subject(self) -> str:
        """First word of the doc; empty if there is no doc."""
        return self.doc.split()[0] if self.doc else ""

    def call(self, value: str, *, plain: bool = False) -> str:
        """Return the text of a call; with `plain`, exactly as the doc suggests."""
        arguments = {DOCUMENTED_ARGUMENT if plain else self.argument: value}
        if self.key and not plain:
            arguments["key"] = self.key
        if SWITCH_ARGUMENT in self.arguments:
            pair = (value, SWITCH_VALUE) if plain or not self.swapped else (SWITCH_VALUE, value)
            arguments = dict(zip((DOCUMENTED_ARGUMENT, SWITCH_ARGUMENT), pair, strict=True))
        return f"<tool_call>{json.dumps({'name': self.name, 'arguments': arguments})}</tool_call>"


@dataclass(frozen=True, slots=True)
class Goal:
    """One operation that the question requires."""

    label: str
    """The operation's name, or the example's result if the question gives an example."""
    operation: str
    """The operation's name; empty if the example fits no known operation."""
    result: str
    """The example's result; empty if the goal is stated by name."""

    def met_by(self, result: str) -> bool:
        """Whether a tool that turns the probe into `result` serves this goal."""
        if self.result:
            return result == self.result
        found = recognise(PROBE, result)
        return found is not None and found.name == self.operation


@dataclass(slots=True)
class View:
    """The conversation so far."""

    tools: list[KnownTool]
    goals: list[Goal]
    value: str
    probe: str
    """Input of the trials: that of the question's examples, else `PROBE`."""
    executing: bool
    turns: int = 0
    last: KnownTool | None = None
    trouble: str = ""
    """Why the last call was refused; empty if it was not."""
    blocked: bool = False
    chosen: dict[str, str] = field(default_factory=dict)
    """Names of the tools in the experience, by goal label."""
    executed: list[str] = field(default_factory=list)
    """Results of the successful execution calls."""

    def serving(self, goal: Goal) -> KnownTool | None:
        """Return the tool that serves `goal` according to the trials; None if there is none yet."""
        return next((t for t in self.tools if t.result and goal.met_by(t.result)), None)

    def seen(self, result: str) -> str:
        """Return a trial's result as the goals are stated: operation name or text."""
        found = None if self.goals[0].result else recognise(PROBE, result)
        return found.name if found else result


def read(messages: Sequence[Message], *, executing: bool) -> View:
    """Parse an episode's messages; `executing` means that it has no trial phase.

    The first message lists the tools, the second is the question.
    """
    listed = enumerate(_TOOL_LINE.findall(messages[0].content), start=1)
    *goals, value = messages[1].content.split()
    tools = [
        KnownTool(number=number, name=name, arguments=arguments, doc=doc)
        for number, (name, arguments, doc) in listed
    ]
    probe = goals[0].partition(">")[0] if ">" in goals[0] else PROBE
    view = View(tools, [_goal(text) for text in goals], value, probe, executing)
    for message in messages[2:]:
        if message.role == "assistant":
            _note_turn(view, message.content)
        elif message.role == "tool":
            _note_answer(view, message.content)
    return view


def _goal(text: str) -> Goal:
    probe, is_example, result = text.partition(">")
    if not is_example:
        return Goal(text, text, "")
    found = recognise(probe, result)
    return Goal(result, found.name if found else "", result)


def _note_turn(view: View, text: str) -> None:
    view.turns += 1
    view.trouble = ""
    call = _CALL.search(text)
    if call is not None:
        name = json.loads(call[1])["name"]
        view.last = next((tool for tool in view.tools if tool.name == name), None)
    experience = _EXPERIENCE.search(text)
    if experience is not None:
        view.executing, view.chosen = True, dict(_CLAUSE.findall(experience[1]))
        for tool in view.tools:
            tool.opened = False


def _note_answer(view: View, text: str) -> None:
    tool, trouble = view.last, _TROUBLE.match(text)
    if tool is not None and trouble is not None:
        view.trouble = trouble[1]
        _note_trouble(tool, trouble[1])
    elif text.startswith("no "):
        view.blocked = True
    elif tool is not None and text == OPENING:
        tool.opened = True
    elif view.executing:
        view.executed.append(shifted(text, -tool.offset) if tool else text)
    elif tool is not None:
        tool.result, tool.offset = read_probe(text, view.probe)


def _note_trouble(tool: KnownTool, trouble: str) -> None:
    if trouble.startswith("needs key="):
        tool.key = trouble.removeprefix("needs key=")
    elif trouble.startswith("use "):
        tool.argument = trouble.removeprefix("use ")
    elif trouble == SWAPPED:
        tool.swapped = True
    elif trouble == CLOSED:
        tool.closed = True
