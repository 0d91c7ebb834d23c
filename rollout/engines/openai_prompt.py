"""The endpoint's extra instruction: try the tools, learn from errors, then execute.

None of it is stored: an episode keeps the prompt that the student would have seen.
"""

from dataclasses import dataclass

from envs.tools import ToolSpec
from rollout.config import EpisodeConfig
from rollout.engines.openai_config import ToolFormat

_ROLE = """You act in the conversation below as a careful agent with unfamiliar tools. The \
transcript will be read without these notes: never mention them, and behave as if the idea of \
trying the tools first were your own."""

_TRIAL = """First you try the tools. What they do differs from what their documentation says, \
and nothing you change now lasts. You have {calls} calls for this.
- Call a tool you are unsure about with a small value of your own choosing, not with the values \
of the question.
- When a call fails or surprises you, say in one short sentence what the error tells you, then \
call again with that corrected.
- Before relying on a tool, make sure what it really does, which arguments it really needs and in \
which order the tools have to be used.
- Stop as soon as you know enough. Then write down, in place of a call, what you learnt about each \
useful tool: its real arguments, what it does, where its documentation is wrong, the order of \
calls: <experience>...</experience>. The experience never holds the result of the question."""

_EXECUTION = """{when} you solve the question with calls of the tools; you have {calls} calls for \
this.
- Use the tools even where you could work the result out yourself: the result must come from a \
call made here.
- When a call fails, say in one short sentence why, and call again with that corrected.
- Finish with the result alone, exactly as the tool gave it: <answer>...</answer>."""

_BACK = "If you learn that you know too little, write <trial/> alone to return to trying."

_TURNS = """In every turn write one or two short sentences that say what you know and what you do \
next, then exactly one of: {call}, an experience, the answer. Then stop and wait; never write a \
tool's reply yourself."""

_CALL_TEXT = """a call, as a JSON object inside tags:
<tool_call>
{"name": "tool-name", "arguments": {"argument": "value"}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class TeacherNotes:
    """The contents of an instruction: the mode, the budgets, and the format of calls."""

    episode: EpisodeConfig
    tool_format: ToolFormat

    def text(self) -> str:
        """Return the instruction."""
        episode = self.episode
        parts = [_ROLE]
        tries = episode.mode != "direct"
        if tries:
            parts.append(_TRIAL.format(calls=episode.trial.calls))
        when = "Once you are told to go on," if tries else "Now"
        parts.append(_EXECUTION.format(when=when, calls=episode.execution.calls))
        if episode.mode == "free":
            parts.append(_BACK)
        native = self.tool_format == "native"
        parts.append(_TURNS.format(call="a tool call" if native else _CALL_TEXT))
        return "\n\n".join(parts)


def unfit_name(tools: tuple[ToolSpec, ...]) -> str | None:
    """Return the first tool name that the native `tools` parameter does not accept."""
    for tool in tools:
        letters = tool.name.replace("-", "_").replace("_", "a")
        if not (letters.isascii() and letters.isalnum() and len(tool.name) <= 64):
            return tool.name
    return None
