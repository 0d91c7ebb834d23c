"""Where two episodes that should be equal first differ."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

from rollout.episode import CallRecord, Episode, Turn

_AROUND = 8
"""Tokens that are shown from the first different one on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeDifference:
    """What was recorded and what was replayed at one place of an episode."""

    where: str
    recorded: str
    replayed: str


def first_difference(recorded: Episode, replayed: Episode) -> EpisodeDifference | None:
    """Return the first difference in what was said, called, answered and scored, if any.

    Times, workers and servers are not compared; those of tool calls are, for a replay gives them
    back.
    """
    return next(_differences(recorded, replayed), None)


def _differences(old: Episode, new: Episode) -> Iterator[EpisodeDifference]:
    yield from _tokens("prompt", _before(old, 0), _before(new, 0))
    for i in range(min(len(old.turns), len(new.turns))):
        where = f"turn {i + 1}"
        yield from _turn(where, old, new, i)
        if new.error and not new.outcome.counts and i == len(new.turns) - 1:
            yield EpisodeDifference(where=where, recorded=_ending(old), replayed=_ending(new))
        yield from _tokens(f"{where}, what followed", _before(old, i + 1), _before(new, i + 1))
    yield from _pair("number of turns", len(old.turns), len(new.turns))
    yield from _tokens("phases", old.phases_T, new.phases_T)
    yield from _pair("outcome", _ending(old), _ending(new))
    yield from _pair("answer", old.answer, new.answer)
    yield from _pair("reward", old.reward, new.reward)
    yield from _pair("reward parts", dict(old.reward_parts), dict(new.reward_parts))
    yield from _pair("messages", old.messages, new.messages)
    yield from _pair("counts", dict(old.extra), dict(new.extra))


def _turn(where: str, old: Episode, new: Episode, index: int) -> Iterator[EpisodeDifference]:
    before, after = old.turns[index], new.turns[index]
    yield from _tokens(where, _said(old, before), _said(new, after))
    yield from _pair(f"{where}, phase", before.phase.name, after.phase.name)
    yield from _pair(f"{where}, fault", before.policy_error, after.policy_error)
    for number, pair in enumerate(zip(before.calls, after.calls, strict=False), start=1):
        yield from _call(f"{where}, call {number}", *pair)
    if not new.error or new.outcome.counts:
        yield from _pair(f"{where}, number of calls", len(before.calls), len(after.calls))


def _call(where: str, old: CallRecord, new: CallRecord) -> Iterator[EpisodeDifference]:
    asked = (f"{old.name} {old.arguments}", f"{new.name} {new.arguments}")
    yield from _pair(where, *asked)
    answered = (f"{old.status.value}: {old.result}", f"{new.status.value}: {new.result}")
    yield from _pair(f"{where}, answer", *answered)
    yield from _pair(f"{where}, as a whole", astuple(old), astuple(new))


def _tokens(where: str, old: Sequence[int], new: Sequence[int]) -> Iterator[EpisodeDifference]:
    if tuple(old) == tuple(new):
        return
    shared = (i for i in range(min(len(old), len(new))) if old[i] != new[i])
    at = next(shared, min(len(old), len(new)))
    yield EpisodeDifference(
        where=f"{where}, token {at + 1}", recorded=_excerpt(old, at), replayed=_excerpt(new, at)
    )


def _pair(where: str, old: object, new: object) -> Iterator[EpisodeDifference]:
    if old != new:
        yield EpisodeDifference(where=where, recorded=str(old), replayed=str(new))


def _excerpt(tokens: Sequence[int], start: int) -> str:
    shown = ", ".join(map(str, tokens[start : start + _AROUND]))
    return f"[{shown}, ...]" if len(tokens) > start + _AROUND else f"[{shown}]"


def _said(episode: Episode, turn: Turn) -> Sequence[int]:
    return episode.token_ids_T[turn.start : turn.end]


def _before(episode: Episode, index: int) -> Sequence[int]:
    """Return the tokens of the world before turn `index`, or after the last turn."""
    start = episode.turns[index - 1].end if index else 0
    end = episode.turns[index].start if index < len(episode.turns) else None
    return episode.token_ids_T[start:end]


def _ending(episode: Episode) -> str:
    return f"{episode.outcome.value}: {episode.error}" if episode.error else episode.outcome.value
