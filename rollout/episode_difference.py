"""First difference between two episodes that should be equal."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

from rollout.episode import CallRecord, Episode, Turn

_SHOWN_TOKENS = 8
"""Number of tokens that are shown, starting with the first different one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeDifference:
    """Recorded and replayed content at one place of an episode."""

    where: str
    recorded: str
    replayed: str


def first_difference(recorded: Episode, replayed: Episode) -> EpisodeDifference | None:
    """Return the first difference in turns, tool calls, answers or scores; None if there is none.

    The episode's own times, worker and server are not compared. The times of tool calls are,
    because a replay returns the recorded ones.
    """
    return next(_differences(recorded, replayed), None)


def _differences(old: Episode, new: Episode) -> Iterator[EpisodeDifference]:
    yield from _tokens("prompt", _before(old, 0), _before(new, 0))
    for i in range(min(len(old.turns), len(new.turns))):
        where = f"turn {i + 1}"
        yield from _turn(where, old, new, i)
        if new.error and not new.outcome.counts and i == len(new.turns) - 1:
            yield EpisodeDifference(where=where, recorded=_ending(old), replayed=_ending(new))
        yield from _tokens(f"{where}, observation", _before(old, i + 1), _before(new, i + 1))
    yield from _pair("number of turns", len(old.turns), len(new.turns))
    yield from _tokens("phases", old.phases_T, new.phases_T)
    yield from _pair("outcome", _ending(old), _ending(new))
    yield from _pair("answer", old.answer, new.answer)
    yield from _pair("reward", old.reward, new.reward)
    yield from _pair("reward parts", dict(old.reward_parts), dict(new.reward_parts))
    yield from _pair("notes of scorers", dict(old.score_notes), dict(new.score_notes))
    yield from _pair("messages", old.messages, new.messages)
    yield from _pair("counts", _counts(old), _counts(new))


def _turn(where: str, old: Episode, new: Episode, index: int) -> Iterator[EpisodeDifference]:
    before, after = old.turns[index], new.turns[index]
    yield from _tokens(where, _sampled(old, before), _sampled(new, after))
    yield from _pair(f"{where}, phase", before.phase.name, after.phase.name)
    yield from _pair(f"{where}, policy error", before.policy_error, after.policy_error)
    for number, pair in enumerate(zip(before.calls, after.calls, strict=False), start=1):
        yield from _call(f"{where}, call {number}", *pair)
    if not new.error or new.outcome.counts:
        yield from _pair(f"{where}, number of calls", len(before.calls), len(after.calls))


def _call(where: str, old: CallRecord, new: CallRecord) -> Iterator[EpisodeDifference]:
    calls = (f"{old.name} {old.arguments}", f"{new.name} {new.arguments}")
    yield from _pair(where, *calls)
    results = (f"{old.status.value}: {old.result}", f"{new.status.value}: {new.result}")
    yield from _pair(f"{where}, answer", *results)
    yield from _pair(f"{where}, all fields", astuple(old), astuple(new))


def _tokens(where: str, old: Sequence[int], new: Sequence[int]) -> Iterator[EpisodeDifference]:
    if tuple(old) == tuple(new):
        return
    shared = (i for i in range(min(len(old), len(new))) if old[i] != new[i])
    at = next(shared, min(len(old), len(new)))
    yield EpisodeDifference(
        where=f"{where}, token {at + 1}", recorded=_excerpt(old, at), replayed=_excerpt(new, at)
    )


def _counts(episode: Episode) -> dict[str, float]:
    """Return what an episode counts, without what its teacher used: no replay asks it."""
    return {name: n for name, n in episode.extra.items() if not name.startswith("teacher_")}


def _pair(where: str, old: object, new: object) -> Iterator[EpisodeDifference]:
    if old != new:
        yield EpisodeDifference(where=where, recorded=str(old), replayed=str(new))


def _excerpt(tokens: Sequence[int], start: int) -> str:
    end = start + _SHOWN_TOKENS
    shown = ", ".join(map(str, tokens[start:end]))
    return f"[{shown}, ...]" if len(tokens) > end else f"[{shown}]"


def _sampled(episode: Episode, turn: Turn) -> Sequence[int]:
    return episode.token_ids_T[turn.start : turn.end]


def _before(episode: Episode, index: int) -> Sequence[int]:
    """Return the tokens that the policy did not sample before turn `index`, or after the last."""
    start = episode.turns[index - 1].end if index else 0
    end = episode.turns[index].start if index < len(episode.turns) else None
    return episode.token_ids_T[start:end]


def _ending(episode: Episode) -> str:
    return f"{episode.outcome.value}: {episode.error}" if episode.error else episode.outcome.value
