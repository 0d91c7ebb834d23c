"""One episode for reading: turns with their phases, calls and observations, in typed form.

Texts are cut, and `text_part` returns what was cut. No text is changed: whoever shows it makes
control characters visible.
"""

import math
from collections.abc import Iterator
from itertools import groupby, takewhile
from typing import Any

from cluster.dashboard.episodes.numbers import numbers_of, phase_name
from cluster.dashboard.models.detail import Call, Message, Scorer, Text, TextPart, Turn
from cluster.dashboard.models.episodes import EpisodeRow
from cluster.dashboard.problems import not_found

LONGEST = 20_000
"""Characters of a text in an answer."""
_CORRECT_ABOVE = 0.5
_ANSWER = "answer"


def text_of(value: str | None, part: str, longest: int = LONGEST) -> Text:
    """Return a text, cut."""
    whole = value or ""
    return Text(text=whole[:longest], length=len(whole), part=part)


def turns_of(record: dict[str, Any]) -> list[Turn]:
    """Return the turns of a record."""
    observations = _observations(record)
    spans = sorted((span["start"], span["version"]) for span in record["spans"])
    return [
        Turn(
            number=number,
            phase=phase_name(turn["phase"]),
            start=turn["start"],
            end=turn["end"],
            text=text_of(turn["text"], f"turns/{number}/text"),
            finish_reason=turn["finish_reason"],
            policy_error=turn["policy_error"],
            versions=_versions(spans, turn["start"], turn["end"]),
            calls=[_call(call, number, index) for index, call in enumerate(turn["calls"])],
            observations=[
                text_of(record["messages"][index]["content"], f"messages/{index}")
                for index in observations[number]
            ],
        )
        for number, turn in enumerate(record["turns"])
    ]


def messages_before(record: dict[str, Any]) -> list[Message]:
    """Return the messages before the first turn."""
    first = takewhile(lambda pair: pair[1]["role"] != "assistant", enumerate(record["messages"]))
    return [
        Message(role=message["role"], content=text_of(message["content"], f"messages/{index}"))
        for index, message in first
    ]


def scorer_of(row: EpisodeRow, record: dict[str, Any]) -> Scorer:
    """Return what the scorer saw and gave."""
    parts = dict(record["reward_parts"])
    answer = parts.get(_ANSWER)
    counts = row.reward is not None
    return Scorer(
        answer=text_of(record["answer"], "answer"),
        outcome=row.outcome,
        reward=row.reward,
        parts=numbers_of(record["reward_parts"]),
        correct=answer > _CORRECT_ABOVE if counts and answer is not None else None,
        note=_note(record) if counts else "The episode was not scored: its outcome has no reward.",
    )


def _note(record: dict[str, Any]) -> str:
    said = [f"{name}: {text}" for name, text in dict(record["score_notes"]).items()]
    return "\n".join(
        [*said, "The expected answer is not stored with an episode: it is the task's."]
    )


def text_part(record: dict[str, Any], part: str, offset: int, limit: int) -> TextPart:
    """Return a piece of a text of `texts_of`. Raises ApiError if there is no such text."""
    found = next((text for name, text in texts_of(record) if name == part), None)
    if found is None:
        raise not_found(
            f"the episode has no text {part[:60]!r}", "use a `part` of the episode's answer"
        )
    piece = found[offset : offset + limit]
    after = offset + len(piece)
    following = after if after < len(found) else None
    return TextPart(part=part, text=piece, offset=offset, length=len(found), next=following)


TEXT_COLUMNS = ("question", "turns", "answer", "error", "score_notes", "messages")
"""Columns that `texts_of` reads."""


def texts_of(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every text of an episode with its name; what a search looks through."""
    yield "question", record["question"] or ""
    for number, turn in enumerate(record["turns"]):
        yield f"turns/{number}/text", turn["text"] or ""
        for index, call in enumerate(turn["calls"]):
            yield f"turns/{number}/calls/{index}/arguments", call["arguments"] or ""
            yield f"turns/{number}/calls/{index}/result", call["result"] or ""
    yield "answer", record["answer"] or ""
    yield "error", record["error"] or ""
    for name, note in dict(record["score_notes"]).items():
        yield f"score_notes/{name}", note
    for index, message in enumerate(record["messages"]):
        yield f"messages/{index}", message["content"] or ""


def _call(call: dict[str, Any], turn: int, index: int) -> Call:
    place = f"turns/{turn}/calls/{index}"
    return Call(
        number=index,
        name=call["name"],
        arguments=text_of(call["arguments"], f"{place}/arguments"),
        status=call["status"],
        result=text_of(call["result"], f"{place}/result"),
        seconds=call["seconds"],
        cpu_seconds=call["cpu_seconds"],
        memory_bytes=None,
        purpose=call["purpose"],
    )


def _versions(spans: list[tuple[int, int]], start: int, end: int) -> list[int]:
    """Return the policy versions of the tokens `[start, end)`, in order."""
    found: list[int] = []
    for index, (first, version) in enumerate(spans):
        last = spans[index + 1][0] if index + 1 < len(spans) else math.inf
        if first < end and last > start:
            found.append(version)
    return list(dict.fromkeys(found))


def _observations(record: dict[str, Any]) -> list[list[int]]:
    """Return, by turn, the messages after it that are no answers of its calls."""
    after: list[list[int]] = []
    numbered = list(enumerate(record["messages"]))
    for is_turn, pairs in groupby(numbered, lambda pair: pair[1]["role"] == "assistant"):
        if is_turn:
            after.extend([] for _ in pairs)
        elif after:
            after[-1].extend(index for index, _ in pairs)
    turns = record["turns"]
    if len(after) != len(turns):  # a format that merges messages: there is no telling
        return [[] for _ in turns]
    return [
        _beyond_calls(found, record["messages"], len(turn["calls"]))
        for found, turn in zip(after, turns, strict=True)
    ]


def _beyond_calls(found: list[int], messages: list[dict[str, Any]], calls: int) -> list[int]:
    """Leave out the first `calls` messages of tools: they are the answers of the turn's calls."""
    tools = [index for index in found if messages[index]["role"] == "tool"]
    return [index for index in found if index not in tools[:calls]]
