"""Thoughts: which part of a turn is reasoning, and therefore no action."""

import re
from dataclasses import dataclass

from rollout.formats.written import ToolFormat

_BROKEN_CALLS = 16
"""Openings without a call that are tried in one turn: each may cost a search of the whole turn."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A turn without its thoughts."""

    text: str
    open_thought: bool
    """Whether the turn ended inside of a thought."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """The marks around a thought of one family."""

    opening: str
    closing: str
    label: str = ""
    """What follows the opening mark before a thought begins."""

    def opened_by(self, context: str) -> bool:
        """Whether a context ends inside of a thought, because the template has opened one."""
        return context.rstrip().endswith(self.opening + self.label)

    def spoken(self, text: str, tools: ToolFormat, *, opened: bool) -> Spoken:
        """Return what a turn says after its last thought.

        Everything before the last closing mark is thought, whether or not the turn or the prompt
        has opened it, and so is everything after an opening mark without a closing one. Inside a
        well-formed tool call that stands outside of a thought, a mark is part of an argument.
        """
        start = position = 0
        if opened:
            start = position = _after(text, self.closing, 0)
            if start < 0:
                return Spoken("", open_thought=True)
        marks, left = self._marks(tools), _BROKEN_CALLS
        while found := marks.search(text, position):
            if found[0] == self.closing:
                start = position = found.end()
            elif found[0] == self.opening:
                position = _after(text, self.closing, found.end())
                if position < 0:
                    return Spoken(text[start : found.start()], open_thought=True)
                start = position
            else:
                end = tools.end_of_call(text, found.start()) if left else -1
                position = end if end > found.start() else found.end()
                left -= end < 0 and left > 0
        return Spoken(text[start:], open_thought=False)

    def thought_before(self, thought: str, turn: str, *, opened: bool = False) -> str:
        """Return `turn` after `thought`, which the prompt may have opened.

        Marks inside of the thought lose their brackets.
        """
        for mark in (self.opening, self.closing):
            thought = thought.replace(mark, mark.strip("<>[]|"))
        opening = "" if opened else f"{self.opening}{self.label}\n"
        return f"{opening}{thought}\n{self.closing}\n{turn}"

    def _marks(self, tools: ToolFormat) -> re.Pattern[str]:
        marks = f"{re.escape(self.opening)}|{re.escape(self.closing)}"
        if tools.opening is None:
            return re.compile(marks)
        return re.compile(f"{marks}|{tools.opening.pattern}", tools.opening.flags)


def _after(text: str, mark: str, start: int) -> int:
    """Return the index after the next `mark`; -1 if there is none."""
    found = text.find(mark, start)
    return found + len(mark) if found >= 0 else -1


FAMILIES = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<|channel>", "<channel|>", label="thought"),
)
"""Qwen, DeepSeek, GLM, Nemotron; Mistral; Seed-OSS; Cohere; Gemma 4. gpt-oss has channels."""
