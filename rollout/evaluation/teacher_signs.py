"""Signs in a teacher's episode: leaked answers, quotes of the hidden instruction, corrections."""

import json
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise, takewhile

import xxhash

from envs.tools import AnswerStatus
from rollout.episode import CallRecord, Episode, Phase

SHINGLE_WORDS = 5
_QUOTE_WORDS = 6
"""Number of consecutive words of the hidden instruction that count as a quote."""
_SHORT_ANSWER = 3
"""Answers with fewer characters also occur in ordinary sentences."""
_WORD = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+")
_LIST_NUMBER = re.compile(r"\b\d{1,2}[.)]\s+(?=\w)")
_META = re.compile(
    r"\b(?:system prompt|(?:hidden|extra|above|these) (?:notes|instructions?)"
    r"|(?:i was|i am|i'm|i have been) (?:told|asked|instructed) to"
    r"|the instructions? (?:says?|tells? me|asks? me)|(?:this|the) transcript)\b",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Return words and numbers in a normal form: `1,200.50` is `1200.5`, `Été` is `été`."""
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [_number(word) if word[0].isdigit() else word for word in found]


def _number(text: str) -> str:
    plain = text.replace(",", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def holds(text: Sequence[str], part: Sequence[str]) -> bool:
    """Whether `text` contains the words of `part` (at least one) in sequence."""
    size = len(part)
    return size > 0 and any(
        text[start : start + size] == part for start in range(len(text) - size + 1)
    )


def leaks_answer(episode: Episode) -> bool:
    """Whether a trial turn or the experience has the answer before an execution call returned it.

    An answer that is part of the prompt is never leaked. An answer of fewer than three characters
    is searched for in the experience only, and list numbers are ignored.
    """
    answer = words(episode.answer)
    opening = takewhile(lambda message: message.role != "assistant", episode.messages)
    known = [episode.question, *(message.content for message in opening)]
    if not answer or any(holds(words(text), answer) for text in known):
        return False
    short = len("".join(answer)) < _SHORT_ANSWER
    for turn in episode.turns:
        searched = turn.phase is Phase.EXPERIENCE or (turn.phase is Phase.TRIAL and not short)
        text = _LIST_NUMBER.sub(" ", turn.text) if short else turn.text
        if searched and holds(words(text), answer):
            return True
        if any(_returns(call, answer) for call in turn.calls):
            return False
    return False


def produces_answer(episode: Episode) -> bool:
    """Whether an execution call's result contains the answer, or is contained in it."""
    answer = words(episode.answer)
    return any(_returns(call, answer) for call in episode.calls)


def _returns(call: CallRecord, answer: list[str]) -> bool:
    if call.purpose != "execution" or call.status is not AnswerStatus.OK:
        return False
    result = words(call.result)
    return holds(result, answer) or holds(answer, result)


def mentions(episode: Episode, hidden: str) -> bool:
    """Whether a turn quotes the hidden instruction or mentions that there is one.

    Words that are also in the student's own prompt do not count as a quote.
    """
    if not hidden:
        return False
    opening = takewhile(lambda message: message.role != "assistant", episode.messages)
    known = {run for message in opening for run in _runs(message.content, _QUOTE_WORDS)}
    secret = set(_runs(hidden, _QUOTE_WORDS)) - known
    return any(
        _META.search(turn.text) or not secret.isdisjoint(_runs(turn.text, _QUOTE_WORDS))
        for turn in episode.turns
    )


def corrections(episode: Episode) -> int:
    """Count corrected mistakes.

    These are failed calls whose tool succeeds later with other arguments, and invalid turns that a
    valid turn follows.
    """
    calls = episode.calls
    corrected = sum(
        call.status is not AnswerStatus.OK
        and any(
            later.status is AnswerStatus.OK
            and later.name == call.name
            and later.arguments != call.arguments
            for later in calls[index + 1 :]
        )
        for index, call in enumerate(calls)
    )
    faults = [bool(turn.policy_error) for turn in episode.turns]
    return corrected + sum(fault and not following for fault, following in pairwise(faults))


def call_sequence(episode: Episode) -> str:
    """Return phase, name and arguments of every call in a normal form, one call per line."""
    return "\n".join(
        f"{call.purpose} {call.name} {_spelt(call.arguments)}" for call in episode.calls
    )


def _spelt(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True).casefold()
    except ValueError:
        return arguments


def shingles(episode: Episode) -> frozenset[int]:
    """Return the 64-bit hashes of all runs of five words in the turns, or of all words if fewer."""
    text = " ".join(turn.text for turn in episode.turns)
    return frozenset(xxhash.xxh3_64_intdigest(run.encode()) for run in _runs(text, SHINGLE_WORDS))


def _runs(text: str, size: int) -> list[str]:
    """Return all runs of `size` words; for a shorter text, one run of all its words."""
    found = words(text)
    starts = range(max(len(found) - size + 1, min(len(found), 1)))
    return [" ".join(found[start : start + size]) for start in starts]
