"""gpt-oss: messages on channels (harmony); calls go to the commentary channel."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from envs.errors import PolicyError, PolicyErrorKind
from envs.tools import JsonObject
from rollout.formats.json_text import JsonFault, after_blanks, read_json, whole_json
from rollout.formats.written import TurnText, WrittenCall, malformed

_MESSAGE = "<|message|>"
_HEADER = re.compile(r"<\|message\|>|<\|end\|>|<\|call\|>|<\|return\|>")
_BODY_END = re.compile(r"<\|(?:start|channel|message|end|call|return)\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s{0,8}(\w{0,32})")
_RECIPIENT = re.compile(r"\bto=([^\s<]{1,256})")
_ROLE = re.compile(r"<\|start\|>\s{0,8}(\w{0,32})")
_FUNCTIONS = "functions."
_NEXT_TURN = "<|end|><|start|>assistant"
_SHAPE = 'a message in the commentary channel to=functions.NAME that holds {"ARGUMENT": "VALUE"}'


@dataclass(frozen=True, slots=True)
class _Message:
    channel: str
    recipient: str
    start: int
    end: int


class GptOssFormat:
    """`<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>`.

    Only the final channel speaks, only the commentary channel calls, and all that stands in the
    analysis channel is a thought.
    """

    name = "gpt_oss"
    shape = _SHAPE
    marks_answers = False
    opening = None

    def end_of_call(self, text: str, start: int) -> int:
        return -1

    def split(self, text: str) -> TurnText:
        said: list[str] = []
        calls: list[WrittenCall] = []
        messages = _messages(text)
        for message in messages:
            body = text[message.start : message.end]
            if message.channel == "commentary" and message.recipient:
                calls.append(_call(message.recipient, body))
            elif message.channel == "final":
                said.append(body)
        open_thought = bool(messages) and messages[-1].channel == "analysis"
        return TurnText("\n".join(said), tuple(calls), open_thought)

    def example(self, name: str, arguments: JsonObject) -> str:
        body = json.dumps(arguments, ensure_ascii=False)
        return f"a message in the commentary channel to={_FUNCTIONS}{name} that holds {body}"

    def join(self, said: str, calls: Sequence[tuple[str, JsonObject]]) -> str:
        """Write spoken text to the final channel, or before calls, to the analysis channel."""
        if not calls:
            return f"<|channel|>final{_MESSAGE}{said}"
        parts = [f"<|channel|>analysis{_MESSAGE}{said}"] if said else []
        parts += [
            f"<|channel|>commentary to={_FUNCTIONS}{name} <|constrain|>json{_MESSAGE}"
            + json.dumps(arguments, ensure_ascii=False)
            for name, arguments in calls
        ]
        return _NEXT_TURN.join(parts)


def thought_before(thought: str, turn: str) -> str:
    """Return `turn` after a message with `thought` in the analysis channel."""
    return f"<|channel|>analysis{_MESSAGE}{thought}{_NEXT_TURN}{turn}"


def _messages(text: str) -> list[_Message]:
    """Return the messages of the assistant, in one pass; text outside of messages is none."""
    found: list[_Message] = []
    at = 0
    while header := _HEADER.search(text, at):
        opening, at = text[at : header.start()], header.end()
        if header[0] != _MESSAGE:
            continue
        channel, recipient = _CHANNEL.search(opening), _RECIPIENT.search(opening)
        role = _ROLE.search(opening)
        end = _end_of_body(text, at)
        if role is None or role[1] == "assistant":
            found.append(
                _Message(channel[1] if channel else "", recipient[1] if recipient else "", at, end)
            )
        at = end
    return found


def _end_of_body(text: str, start: int) -> int:
    """Return where a message ends: after its JSON, if it is some, or else at the next token."""
    if text.startswith("{", after_blanks(text, start)):
        try:
            _, end = read_json(text, start)
        except JsonFault:
            pass
        else:
            end = after_blanks(text, end)
            if end == len(text) or _BODY_END.match(text, end):
                return end
    found = _BODY_END.search(text, start)
    return found.start() if found else len(text)


def _call(recipient: str, body: str) -> WrittenCall:
    if not recipient.startswith(_FUNCTIONS):
        raise PolicyError(
            PolicyErrorKind.UNKNOWN_TOOL,
            f"no tool {recipient[:60]}: the tools are in the namespace {_FUNCTIONS.rstrip('.')}",
        )
    try:
        return WrittenCall(recipient.removeprefix(_FUNCTIONS), whole_json(body))
    except JsonFault as fault:
        raise malformed(str(fault), _SHAPE) from None
