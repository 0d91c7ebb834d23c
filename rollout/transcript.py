"""An episode as readable text: the question, the policy's turns, tool results and the reward.

Control characters in text from a model or a tool are escaped, so that it cannot move the cursor or
change colours. Long texts are shortened with a note. The result is plain text: a caller that prints
it with markup must escape it first.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile

from envs.messages import Message
from envs.tools import AnswerStatus
from rollout.episode import CallRecord, Episode, Outcome, Phase, Turn

WIDTH = 96
LONGEST_TEXT = 1_200
"""Maximum number of characters shown of one text."""

_TITLES = {
    Phase.TRIAL: "Trials: the model tests the tools; their changes are discarded",
    Phase.EXPERIENCE: "Experience: the model's notes after its trials",
    Phase.EXECUTION: "Execution: the model works on the question",
}
_ENDINGS = {
    Outcome.ANSWERED: "answered",
    Outcome.TRUNCATED: "ran out of its budget before it answered",
    Outcome.POLICY_ERROR: "ended after too many invalid turns",
    Outcome.INFRA_FAILED: "infrastructure failure (not caused by the model: no reward)",
    Outcome.DEADLINE: "exceeded its time limit (not caused by the model: no reward)",
    Outcome.CANCELLED: "cancelled (no reward)",
    Outcome.PROMPT_TOO_LONG: "not started: the prompt has no room in the context (no reward)",
}
_STATUSES = {
    AnswerStatus.OK: "returned",
    AnswerStatus.TOOL_ERROR: "failed",
    AnswerStatus.TIMEOUT: "timed out",
    AnswerStatus.INFRA_ERROR: "could not be run",
}
_MODES = {
    "direct": "without trials",
    "trial": "trials first, then execution",
    "free": "may return to trials",
}
_CALL_BLOCK = re.compile(
    r"<tool_call>.*?</tool_call>|\[TOOL_CALLS\].*"
    r"|<\uff5ctool\u2581calls?\u2581begin\uff5c>.*|<\|channel\|>commentary to=functions\..*",
    re.DOTALL,
)
"""Calls in the text of a turn; they are shown once more with their answers."""
_TAG = re.compile(r"</?(?:experience|answer)>")
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def render(episode: Episode) -> str:
    """Return `episode` as lines of plain text, at most about 100 columns wide."""
    lines = [*_heading(episode)]
    for message in takewhile(lambda message: message.role == "system", episode.messages):
        lines += ["", "Instructions", *_block(message.content)]
    lines += ["", "Question", *_block(episode.question)]
    observations = observations_of(episode)
    numbered = list(enumerate(episode.turns, start=1))
    for phase, turns in groupby(numbered, key=lambda pair: pair[1].phase):
        lines += ["", _rule(_TITLES.get(phase, phase.name.capitalize()))]
        for number, turn in turns:
            lines += _turn(number, turn, observations[number - 1])
    return "\n".join([*lines, "", _rule("Result"), *_result(episode)]) + "\n"


def _heading(episode: Episode) -> Iterator[str]:
    lease, versions = episode.lease, sorted({span.version for span in episode.spans})
    yield _rule(f"Episode {inert(lease.episode)}")
    yield (
        f"task {inert(lease.task)} ({inert(episode.environment)}, {episode.split}), "
        f"sample {lease.sample_index} of group {inert(lease.group)}"
        + (f", attempt {lease.attempt + 1}" if lease.attempt else "")
    )
    actor = "the model" if episode.source == "policy" else f"the teacher '{inert(episode.source)}'"
    known = f" with weights of version {', '.join(map(str, versions))}" if versions else ""
    yield f"run by {actor}{known}; mode '{episode.mode}': {_MODES[episode.mode]}"
    if episode.tags:
        yield "; ".join(f"{inert(name)} {inert(value)}" for name, value in episode.tags.items())


def _turn(number: int, turn: Turn, observations: Sequence[Message]) -> Iterator[str]:
    cut = ", cut off at its token limit" if turn.finish_reason == "length" else ""
    text = turn.text if turn.policy_error else _TAG.sub("", _CALL_BLOCK.sub("", turn.text))
    yield f"  Turn {number} ({turn.end - turn.start} tokens{cut})"
    if text.strip():
        yield from _block(text.strip())
    if turn.policy_error:
        yield f"    ! not accepted: {turn.policy_error.replace('_', ' ')}"
    for call in turn.calls:
        yield from _call(call)
    for message in observations:
        yield from _labelled("    message: ", message.content)


def _call(call: CallRecord) -> Iterator[str]:
    yield from _labelled("    calls ", f"{call.name} {call.arguments}")
    status = f"      {_STATUSES[call.status]} ({1000 * call.seconds:.1f} ms): "
    yield from _labelled(status, call.result)


def _result(episode: Episode) -> Iterator[str]:
    yield f"  {'Outcome':<8} {_ENDINGS[episode.outcome]}"
    if episode.error:
        yield from _labelled("  Error    ", episode.error)
    if episode.outcome is Outcome.ANSWERED:
        yield from _labelled("  Answer   ", episode.answer or "(empty)")
    if episode.reward is not None:
        parts = ", ".join(f"{inert(k)} {v:+.2f}" for k, v in episode.reward_parts.items())
        yield f"  {'Reward':<8} {episode.reward:.2f}{f'  ({parts})' if parts else ''}"
    for name, note in episode.score_notes.items():
        yield from _labelled(f"  {inert(name)}: ", note)
    trials = sum(call.purpose == "trial" for call in episode.calls)
    timings, mask = episode.timings, episode.loss_mask_T
    yield (
        f"  {'Cost':<8} {trials} trial calls, {len(episode.calls) - trials} execution calls, "
        f"{sum(mask)} of {len(mask)} tokens sampled by the model"
    )
    yield (
        f"  {'Seconds':<8} {timings.wall_s:.2f} in total: {timings.generate_s:.2f} generating, "
        f"{timings.tool_s:.2f} in tools, {timings.queue_s:.2f} waiting"
    )


def observations_of(episode: Episode) -> list[list[Message]]:
    """Return the messages to the policy after each turn, without the answers of tools."""
    after: list[list[Message]] = []
    for assistant, messages in groupby(episode.messages, lambda m: m.role == "assistant"):
        if assistant:
            after.extend([] for _ in messages)
        elif after:
            after[-1].extend(messages)
    if len(after) != len(episode.turns):
        return [[] for _ in episode.turns]
    return [
        [message for message in messages if message.role == "tool"][len(turn.calls) :]
        for turn, messages in zip(episode.turns, after, strict=True)
    ]


def _rule(title: str) -> str:
    return f"── {title} ".ljust(WIDTH, "─")


def _block(text: str) -> list[str]:
    return _labelled("    ", text)


def _labelled(label: str, text: str) -> list[str]:
    """Return `text` after `label`: shortened, escaped and wrapped, with indented further lines."""
    shown = inert(text[:LONGEST_TEXT])
    if len(text) > LONGEST_TEXT:
        shown += f" … ({len(text) - LONGEST_TEXT:,} more characters)"
    indent = " " * min(len(label), 11)
    lines: list[str] = []
    for line in shown.splitlines() or [""]:
        lines += textwrap.wrap(
            line,
            WIDTH,
            initial_indent=label if not lines else indent,
            subsequent_indent=indent,
            replace_whitespace=False,
            drop_whitespace=False,
            break_on_hyphens=False,
        ) or [label.rstrip() if not lines else ""]
    return [line.rstrip() for line in lines]


def inert(text: str) -> str:
    """Return `text` with characters escaped that control a terminal, reorder text or are not seen;
    tabs and line ends stay.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
