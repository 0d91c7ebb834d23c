"""Which played episodes are worth imitating: a reason for every one that is not.

First each episode is examined alone, then those that passed against each other. All of it is pure:
the same episodes and rules give the same selection.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field

from envs.config import Section
from envs.seeds import stable_hash
from rollout.episode import Episode
from rollout.evaluation.teacher_signs import (
    call_sequence,
    corrections,
    leaks_answer,
    mentions,
    produces_answer,
    shingles,
)

ANSWER_PART = "answer"


class Reason(StrEnum):
    """Why an episode is not kept; in the order in which they are looked for."""

    NOT_FINISHED = "not_finished"
    """The world failed, the teacher refused, or it was too slow."""
    WRONG = "wrong"
    FAULTY = "faulty"
    """More faulty turns than allowed."""
    FEW_TRIALS = "few_trials"
    TOO_LONG = "too_long"
    MENTIONS_INSTRUCTION = "mentions_instruction"
    CONTROL_TOKENS = "control_tokens"
    """A turn holds tokens of the template, or text that the student's tokenizer cannot say."""
    LEAKS_ANSWER = "leaks_answer"
    """The answer stands in a trial turn or in the experience before execution produced it."""
    ANSWER_NOT_PRODUCED = "answer_not_produced"
    """No tool returned the answer."""
    DUPLICATE = "duplicate"
    """Same task, same calls."""
    NEAR_DUPLICATE = "near_duplicate"
    """Nearly the words of another, whatever the task."""
    PER_TASK = "per_task"
    """Better ones of the same task fill its share."""
    UNCORRECTED = "uncorrected"
    """One without self-correction, where a share must have it."""
    UNBALANCED = "unbalanced"
    """One more of a kind than the rarest kind allows."""


class FilterConfig(Section):
    """`[collect.filter]`: which episodes are kept for imitation."""

    min_answer: float = Field(default=1.0, ge=0, le=1)
    """Least score of the answer; below 1 only where scorers give parts."""
    min_trials: int = Field(default=1, ge=0)
    """Least trial calls; none are asked for in mode `direct`."""
    max_policy_errors: int = Field(default=2, ge=0)
    """Most faulty turns."""
    max_tokens: int = Field(default=0, ge=0)
    """Longest episode in tokens, prompt included; 0 is no limit."""
    max_turns: int = Field(default=0, ge=0)
    """Most turns; 0 is no limit."""
    leakage: bool = True
    """Drop episodes that know the answer before execution produced it."""
    produced: bool = True
    """Drop episodes whose answer no execution call returned; off for answers that are derived."""
    near_duplicate: float = Field(default=0.9, gt=0, le=1)
    """Jaccard similarity of five-word shingles from which two episodes are near-duplicates."""
    per_task: int = Field(default=0, ge=0)
    """Most episodes of one task, best first; 1 is best-of-n, 0 keeps all."""
    corrected_share: float = Field(default=0.0, ge=0, le=1)
    """Least share of kept episodes in which a mistake is made and corrected."""
    balance: str = ""
    """Tag whose values are to be equally frequent, such as `depth`; empty for none."""
    balance_ratio: float = Field(default=1.0, ge=1)
    """How many times as frequent as the rarest value any other may be."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the filter knows beyond the episodes."""

    hidden: str = ""
    """Instruction that the teacher had and the student has not."""
    control_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What the filter needs of one episode, so that episodes need not be kept."""

    episode: str
    task: str
    source: str
    tags: Mapping[str, str]
    reason: Reason | None
    error: str
    """Why the world failed it; empty where it did not."""
    reward: float
    calls: int
    trial_calls: int
    tokens: int
    sampled_tokens: int
    corrections: int
    sequence: str
    """Phase, name and arguments of every call."""
    shingles: frozenset[int]

    @property
    def rank(self) -> tuple[float, int, int, str]:
        """Best first: the highest reward, then the fewest calls, then the shortest."""
        return -self.reward, self.calls, self.tokens, self.episode


@dataclass(frozen=True, slots=True)
class Selection:
    """The ids that are kept, in the order they were examined, and why the others are not."""

    kept: tuple[str, ...]
    dropped: Mapping[str, Reason]


def examine(episode: Episode, rules: FilterConfig, given: Given) -> Candidate:
    """Look at one episode alone."""
    reason = _fault(episode, rules, given)
    calls = episode.calls
    return Candidate(
        episode=episode.lease.episode,
        task=episode.lease.task,
        source=episode.source,
        tags=episode.tags,
        reason=reason,
        error="" if episode.outcome.counts else episode.error or episode.outcome.value,
        reward=episode.reward or 0.0,
        calls=len(calls),
        trial_calls=sum(call.purpose == "trial" for call in calls),
        tokens=len(episode.token_ids_T),
        sampled_tokens=sum(episode.loss_mask_T),
        corrections=corrections(episode),
        sequence=call_sequence(episode),
        shingles=frozenset() if reason else shingles(episode),
    )


def _fault(episode: Episode, rules: FilterConfig, given: Given) -> Reason | None:
    texts = [turn.text for turn in episode.turns]
    faults = sum(bool(turn.policy_error) for turn in episode.turns)
    trials = sum(call.purpose == "trial" for call in episode.calls)
    over = [
        0 < rules.max_tokens < len(episode.token_ids_T),
        0 < rules.max_turns < len(episode.turns),
    ]
    checks: tuple[tuple[Reason, Callable[[], bool]], ...] = (
        (Reason.NOT_FINISHED, lambda: not episode.outcome.counts),
        (Reason.WRONG, lambda: episode.reward_parts.get(ANSWER_PART, 0.0) < rules.min_answer),
        (Reason.FAULTY, lambda: faults > rules.max_policy_errors),
        (Reason.FEW_TRIALS, lambda: episode.mode != "direct" and trials < rules.min_trials),
        (Reason.TOO_LONG, lambda: any(over)),
        (Reason.MENTIONS_INSTRUCTION, lambda: mentions(episode, given.hidden)),
        (
            Reason.CONTROL_TOKENS,
            lambda: any(token in text for token in given.control_tokens for text in texts),
        ),
        (Reason.LEAKS_ANSWER, lambda: rules.leakage and leaks_answer(episode)),
        (Reason.ANSWER_NOT_PRODUCED, lambda: rules.produced and not produces_answer(episode)),
    )
    return next((reason for reason, found in checks if found()), None)


def select(candidates: Sequence[Candidate], rules: FilterConfig) -> Selection:
    """Choose among examined episodes."""
    dropped = {c.episode: c.reason for c in candidates if c.reason is not None}
    left = sorted((c for c in candidates if c.reason is None), key=lambda c: c.rank)
    steps: tuple[tuple[Reason, Callable[[list[Candidate]], Iterable[Candidate]]], ...] = (
        (Reason.DUPLICATE, lambda left: _repeated(left)),
        (Reason.NEAR_DUPLICATE, lambda left: near_duplicates(left, rules.near_duplicate)),
        (Reason.PER_TASK, lambda left: _beyond(left, lambda c: c.task, rules.per_task)),
        (Reason.UNCORRECTED, lambda left: _uncorrected(left, rules.corrected_share)),
        (Reason.UNBALANCED, lambda left: _unbalanced(left, rules)),
    )
    for reason, surplus in steps:
        gone = {candidate.episode for candidate in surplus(left)}
        dropped |= dict.fromkeys(gone, reason)
        left = [candidate for candidate in left if candidate.episode not in gone]
    kept = tuple(c.episode for c in candidates if c.episode not in dropped)
    return Selection(kept, dropped)


def near_duplicates(ranked: Sequence[Candidate], threshold: float) -> list[Candidate]:
    """Return those whose Jaccard similarity to a better one that stays reaches `threshold`.

    Exact, by prefix filtering (Chaudhuri et al., ICDE 2006): two sets that similar share one of
    their rarest |x| - ceil(threshold * |x|) + 1 shingles.
    """
    frequency = Counter(shingle for candidate in ranked for shingle in candidate.shingles)
    index: defaultdict[int, list[Candidate]] = defaultdict(list)
    found: list[Candidate] = []
    for candidate in ranked:
        own = sorted(candidate.shingles, key=lambda shingle: (frequency[shingle], shingle))
        needed = math.ceil(threshold * len(own) - 1e-9)
        prefix = own[: len(own) - needed + 1]
        alike = {other.episode: other for shingle in prefix for other in index[shingle]}
        if any(_jaccard(candidate.shingles, o.shingles) >= threshold for o in alike.values()):
            found.append(candidate)
            continue
        for shingle in prefix:
            index[shingle].append(candidate)
    return found


def _jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def _repeated(ranked: Iterable[Candidate]) -> list[Candidate]:
    return _beyond(ranked, lambda c: f"{c.task}\x1f{c.sequence}", 1)


def _beyond(
    ranked: Iterable[Candidate], kind: Callable[[Candidate], str], most: int
) -> list[Candidate]:
    """Return what comes after the first `most` of its kind; 0 is no limit."""
    seen: Counter[str] = Counter()
    surplus: list[Candidate] = []
    for candidate in ranked:
        seen[kind(candidate)] += 1
        if 0 < most < seen[kind(candidate)]:
            surplus.append(candidate)
    return surplus


def _drawn(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return `candidates` in an order that has to do with nothing about them."""
    return sorted(candidates, key=lambda c: stable_hash("teacher filter", c.episode))


def _uncorrected(left: Sequence[Candidate], share: float) -> list[Candidate]:
    if share == 0:
        return []
    plain = [candidate for candidate in left if not candidate.corrections]
    allowed = int((len(left) - len(plain)) * (1 - share) / share + 1e-9)
    return _drawn(plain)[allowed:]


def _unbalanced(left: Sequence[Candidate], rules: FilterConfig) -> list[Candidate]:
    if not rules.balance:
        return []
    values = Counter(candidate.tags.get(rules.balance, "") for candidate in left)
    most = int(min(values.values(), default=0) * rules.balance_ratio)
    return _beyond(_drawn(left), lambda c: c.tags.get(rules.balance, ""), most)
