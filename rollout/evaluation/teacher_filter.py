"""Selects episodes for SFT; every other episode gets a reason.

First every episode is examined on its own, then the remaining ones are compared with each other.
All functions are pure: the same episodes and rules give the same selection.
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
"""Reward part that scores the answer, without penalties and costs."""


class Reason(StrEnum):
    """Why an episode is not selected, in the order of the checks."""

    NOT_FINISHED = "not_finished"
    """The infrastructure failed, the teacher refused, or the episode exceeded its deadline."""
    WRONG = "wrong"
    """The score of the answer is below `min_answer`."""
    FAULTY = "faulty"
    """More invalid turns than allowed."""
    FEW_TRIALS = "few_trials"
    TOO_LONG = "too_long"
    MENTIONS_INSTRUCTION = "mentions_instruction"
    CONTROL_TOKENS = "control_tokens"
    """A turn contains control tokens of the template, or text that the student cannot tokenise."""
    LEAKS_ANSWER = "leaks_answer"
    """A trial turn or the experience contains the answer before execution produced it."""
    ANSWER_NOT_PRODUCED = "answer_not_produced"
    """No execution call returned the answer."""
    DUPLICATE = "duplicate"
    """Another episode has the same task and the same calls."""
    NEAR_DUPLICATE = "near_duplicate"
    """Another episode, of any task, has nearly the same words."""
    PER_TASK = "per_task"
    """The task has enough better episodes."""
    UNCORRECTED = "uncorrected"
    """No mistake is corrected in it, and there are too many episodes of this kind."""
    UNBALANCED = "unbalanced"
    """Its value of the tag `balance` is too frequent."""


class FilterConfig(Section):
    """`[collect.filter]`: which collected episodes are selected as SFT data."""

    min_answer: float = Field(default=1.0, ge=0, le=1)
    """Minimum score of the answer, from 0 to 1. 1, the default, requires a correct answer; a lower
    value is useful only if the scorer gives partial scores.
    """
    min_trials: int = Field(default=1, ge=0)
    """Minimum number of trial calls. The default removes episodes without any trial; mode `direct`
    ignores it.
    """
    max_policy_errors: int = Field(default=2, ge=0)
    """Maximum number of invalid turns. The default allows a few, because corrections are worth
    learning.
    """
    max_tokens: int = Field(default=0, ge=0)
    """Maximum length of an episode in tokens, including the prompt. 0, the default, is no limit."""
    max_turns: int = Field(default=0, ge=0)
    """Maximum number of turns. 0, the default, is no limit."""
    leakage: bool = True
    """Whether to drop episodes whose trials or experience contain the answer before execution
    produced it. They would teach the student to guess answers.
    """
    produced: bool = True
    """Whether to drop episodes whose answer no execution call returned. Set it to `false` for tasks
    whose answer is derived from tool results.
    """
    near_duplicate: float = Field(default=0.9, gt=0, le=1)
    """Jaccard similarity, from 0 to 1, of five-word shingles from which two episodes count as near
    duplicates; only the better one is selected.
    """
    per_task: int = Field(default=0, ge=0)
    """Maximum number of episodes per task, the best ones first. 1 is best-of-n; 0, the default, is
    no limit.
    """
    corrected_share: float = Field(default=0.0, ge=0, le=1)
    """Minimum share of selected episodes in which a mistake is corrected, from 0 to 1. Surplus
    episodes without a correction are dropped; 0, the default, drops none.
    """
    balance: str = ""
    """Name of a tag, for example `depth`, whose values are balanced by dropping episodes of
    frequent values. Empty, the default, balances nothing.
    """
    balance_ratio: float = Field(default=1.0, ge=1)
    """Maximum frequency of a value of `balance`, as a multiple of the rarest value's frequency. 1,
    the default, makes all values equally frequent.
    """


@dataclass(frozen=True, slots=True)
class FilterContext:
    """Information for the filter that the episodes do not contain."""

    hidden: str = ""
    """Instruction that only the teacher received."""
    control_tokens: tuple[str, ...] = ()
    """Texts that are control tokens of the student's template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The fields of one episode that the filter uses, so that episodes need not stay in memory."""

    episode: str
    task: str
    source: str
    tags: Mapping[str, str]
    reason: Reason | None
    error: str
    """Error of an episode that does not count; empty for others."""
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
        """Sort key, best first: the highest reward, then the fewest calls, then fewest tokens."""
        return -self.reward, self.calls, self.tokens, self.episode


@dataclass(frozen=True, slots=True)
class TeacherSelection:
    """Ids of the selected episodes, in the given order, and the reasons for all others."""

    selected: tuple[str, ...]
    dropped: Mapping[str, Reason]


def examine(episode: Episode, rules: FilterConfig, context: FilterContext) -> Candidate:
    """Check one episode on its own."""
    reason = _reason(episode, rules, context)
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


def _reason(episode: Episode, rules: FilterConfig, context: FilterContext) -> Reason | None:
    texts = [turn.text for turn in episode.turns]
    errors = sum(bool(turn.policy_error) for turn in episode.turns)
    trials = sum(call.purpose == "trial" for call in episode.calls)
    over = [
        0 < rules.max_tokens < len(episode.token_ids_T),
        0 < rules.max_turns < len(episode.turns),
    ]
    checks: tuple[tuple[Reason, Callable[[], bool]], ...] = (
        (Reason.NOT_FINISHED, lambda: not episode.outcome.counts),
        (Reason.WRONG, lambda: episode.reward_parts.get(ANSWER_PART, 0.0) < rules.min_answer),
        (Reason.FAULTY, lambda: errors > rules.max_policy_errors),
        (Reason.FEW_TRIALS, lambda: episode.mode != "direct" and trials < rules.min_trials),
        (Reason.TOO_LONG, lambda: any(over)),
        (Reason.MENTIONS_INSTRUCTION, lambda: mentions(episode, context.hidden)),
        (
            Reason.CONTROL_TOKENS,
            lambda: any(token in text for token in context.control_tokens for text in texts),
        ),
        (Reason.LEAKS_ANSWER, lambda: rules.leakage and leaks_answer(episode)),
        (Reason.ANSWER_NOT_PRODUCED, lambda: rules.produced and not produces_answer(episode)),
    )
    return next((reason for reason, found in checks if found()), None)


def select(candidates: Sequence[Candidate], rules: FilterConfig) -> TeacherSelection:
    """Select from examined episodes; each rule sees only the episodes that earlier rules left."""
    dropped = {c.episode: c.reason for c in candidates if c.reason is not None}
    ranked = sorted((c for c in candidates if c.reason is None), key=lambda c: c.rank)
    steps: tuple[tuple[Reason, Callable[[list[Candidate]], Iterable[Candidate]]], ...] = (
        (Reason.DUPLICATE, lambda ranked: _repeated(ranked)),
        (Reason.NEAR_DUPLICATE, lambda ranked: near_duplicates(ranked, rules.near_duplicate)),
        (Reason.PER_TASK, lambda ranked: _beyond(ranked, lambda c: c.task, rules.per_task)),
        (Reason.UNCORRECTED, lambda ranked: _uncorrected(ranked, rules.corrected_share)),
        (Reason.UNBALANCED, lambda ranked: _unbalanced(ranked, rules)),
    )
    for reason, surplus in steps:
        removed = {candidate.episode for candidate in surplus(ranked)}
        dropped |= dict.fromkeys(removed, reason)
        ranked = [candidate for candidate in ranked if candidate.episode not in removed]
    selected = tuple(c.episode for c in candidates if c.episode not in dropped)
    return TeacherSelection(selected, dropped)


def near_duplicates(ranked: Sequence[Candidate], threshold: float) -> list[Candidate]:
    """Return the candidates whose Jaccard similarity to a better, selected one is >= `threshold`.

    The result is exact. Prefix filtering (Chaudhuri et al., ICDE 2006) avoids comparing all pairs:
    two sets that are similar enough share one of their rarest |x| - ceil(threshold * |x|) + 1
    shingles.
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
    """Return the candidates after the first `most` of each kind; 0 is no limit."""
    seen: Counter[str] = Counter()
    surplus: list[Candidate] = []
    for candidate in ranked:
        seen[kind(candidate)] += 1
        if 0 < most < seen[kind(candidate)]:
            surplus.append(candidate)
    return surplus


def _shuffled(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return `candidates` in a random order that depends only on their ids."""
    return sorted(candidates, key=lambda c: stable_hash("teacher filter", c.episode))


def _uncorrected(ranked: Sequence[Candidate], share: float) -> list[Candidate]:
    if share == 0:
        return []
    plain = [candidate for candidate in ranked if not candidate.corrections]
    allowed = int((len(ranked) - len(plain)) * (1 - share) / share + 1e-9)
    return _shuffled(plain)[allowed:]


def _unbalanced(ranked: Sequence[Candidate], rules: FilterConfig) -> list[Candidate]:
    if not rules.balance:
        return []
    values = Counter(candidate.tags.get(rules.balance, "") for candidate in ranked)
    most = int(min(values.values(), default=0) * rules.balance_ratio)
    return _beyond(_shuffled(ranked), lambda c: c.tags.get(rules.balance, ""), most)
