"""The filter of teacher episodes: one that passes, and one for every reason not to."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from envs.messages import Message
from envs.tools import AnswerStatus
from rollout.episode import CallRecord, Episode, Lease, Outcome, Phase, Turn
from rollout.evaluation.teacher_filter import (
    Candidate,
    FilterConfig,
    Given,
    Reason,
    examine,
    near_duplicates,
    select,
)
from rollout.evaluation.teacher_signs import corrections, leaks_answer, produces_answer, words

RULES = FilterConfig()
HIDDEN = "Call a tool you are unsure about with a small value of your own choosing."
Make = Callable[..., Episode]


def called(
    name: str,
    value: str,
    result: str,
    purpose: Any = "execution",
    status: AnswerStatus = AnswerStatus.OK,
) -> CallRecord:
    return CallRecord(
        name=name,
        arguments=f'{{"x": "{value}"}}',
        status=status,
        result=result,
        seconds=0.0,
        cpu_seconds=0.0,
        purpose=purpose,
    )


def turn(phase: Phase, text: str, *calls: CallRecord, policy_error: str = "") -> Turn:
    return Turn(phase, 0, 1, text, "stop", policy_error, calls)


TRIAL = turn(Phase.TRIAL, "I try abc first", called("tosi", "abc", "cba", "trial"))
EXPERIENCE = turn(Phase.EXPERIENCE, "<experience>tosi reverses its x</experience>")
WORK = turn(Phase.EXECUTION, "now the value itself", called("tosi", "hello", "olleh"))
ANSWER = turn(Phase.EXECUTION, "<answer>olleh</answer>")
GOOD = (TRIAL, EXPERIENCE, WORK, ANSWER)


@pytest.fixture
def make(episode_with: Make) -> Make:
    def build(
        episode: str = "e0",
        *,
        task: str = "task-1",
        turns: Sequence[Turn] = GOOD,
        right: float = 1.0,
        **changes: Any,
    ) -> Episode:
        played = episode_with(lease=Lease("run", episode, "g", task, 0, 0, 7))
        question = "Reverse hello."
        fields = {
            "question": question,
            "answer": "olleh",
            "turns": tuple(turns),
            "reward": right,
            "reward_parts": {"answer": right},
            "messages": (
                Message("user", question),
                *(Message("assistant", one.text) for one in turns),
            ),
        }
        return replace(played, **{**fields, **changes})

    return build


def reason_of(episode: Episode, rules: FilterConfig = RULES, given: Given | None = None) -> Any:
    return examine(episode, rules, given or Given(HIDDEN)).reason


def test_a_right_episode_with_a_trial_and_a_produced_answer_passes(make: Make) -> None:
    candidate = examine(make(), RULES, Given(HIDDEN, ("<|im_end|>",)))
    assert (candidate.reason, candidate.trial_calls, candidate.calls) == (None, 1, 2)
    assert select([candidate], RULES).kept == ("e0",)


def faulty(count: int) -> tuple[Turn, ...]:
    return tuple(turn(Phase.TRIAL, "?", policy_error="no_action") for _ in range(count))


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        (Reason.NOT_FINISHED, {"outcome": Outcome.INFRA_FAILED, "reward": None}),
        (Reason.WRONG, {"right": 0.0}),
        (Reason.WRONG, {"right": 0.5}),
        (Reason.FAULTY, {"turns": (*faulty(3), *GOOD)}),
        (Reason.FEW_TRIALS, {"turns": GOOD[1:]}),
        (
            Reason.MENTIONS_INSTRUCTION,
            {"turns": (replace(TRIAL, text="The instructions say that I try first"), *GOOD[1:])},
        ),
        (
            Reason.MENTIONS_INSTRUCTION,
            {"turns": (replace(TRIAL, text="so: with a small value of your own"), *GOOD[1:])},
        ),
        (Reason.CONTROL_TOKENS, {"turns": (*GOOD[:3], replace(ANSWER, text="<|unknown|>"))}),
        (Reason.LEAKS_ANSWER, {"turns": (replace(TRIAL, text="surely Olleh"), *GOOD[1:])}),
        (
            Reason.LEAKS_ANSWER,
            {"turns": (TRIAL, replace(EXPERIENCE, text="<experience>olleh</experience>"), WORK)},
        ),
        (Reason.ANSWER_NOT_PRODUCED, {"turns": (TRIAL, EXPERIENCE, ANSWER)}),
        (
            Reason.ANSWER_NOT_PRODUCED,
            {"turns": (TRIAL, EXPERIENCE, replace(WORK, calls=(called("a", "b", "c"),)), ANSWER)},
        ),
    ],
)
def test_an_episode_is_dropped_for_one_reason(
    make: Make, reason: Reason, changes: dict[str, Any]
) -> None:
    assert reason_of(make(**changes), given=Given(HIDDEN, ("<|unknown|>",))) is reason


def test_length_limits(make: Make) -> None:
    assert reason_of(make(), FilterConfig(max_tokens=11)) is Reason.TOO_LONG
    assert reason_of(make(), FilterConfig(max_turns=3)) is Reason.TOO_LONG
    assert reason_of(make(), FilterConfig(max_tokens=12, max_turns=4)) is None


def test_what_may_be_switched_off(make: Make) -> None:
    leaked = make(turns=(replace(TRIAL, text="olleh"), EXPERIENCE, ANSWER))
    assert reason_of(leaked) is Reason.LEAKS_ANSWER
    assert reason_of(leaked, FilterConfig(leakage=False)) is Reason.ANSWER_NOT_PRODUCED
    assert reason_of(leaked, FilterConfig(leakage=False, produced=False)) is None
    assert reason_of(make(right=0.5), FilterConfig(min_answer=0.5)) is None


def test_no_trials_are_asked_of_the_direct_mode(make: Make) -> None:
    assert reason_of(make(turns=GOOD[2:], mode="direct")) is None


def test_nothing_is_hidden_from_a_scripted_teacher(make: Make) -> None:
    told = make(turns=(replace(TRIAL, text="The instructions say so"), *GOOD[1:]))
    assert reason_of(told, given=Given()) is None


# Leaks


def test_an_answer_that_the_question_has_is_no_leak(make: Make) -> None:
    episode = make(question="Is it olleh or hello?", turns=(replace(TRIAL, text="olleh"), WORK))
    assert not leaks_answer(episode)


def test_after_execution_produced_it_the_answer_may_be_said(make: Make) -> None:
    again = replace(TRIAL, text="I saw olleh and try once more")
    assert not leaks_answer(make(turns=(TRIAL, EXPERIENCE, WORK, again, ANSWER)))


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("<experience>1. tosi 2. mira</experience>", False),
        ("<experience>the result is 2</experience>", True),
        ("<experience>it has 12 of them</experience>", False),
    ],
)
def test_a_short_answer_leaks_in_the_experience_only(make: Make, text: str, leak: bool) -> None:
    turns = (replace(TRIAL, text="I try 2"), replace(EXPERIENCE, text=text))
    assert leaks_answer(make(turns=turns, answer="2")) is leak


@pytest.mark.parametrize(
    ("answer", "result", "produced"),
    [
        ("1200.5", '{"total": "1,200.50"}', True),
        ("42 km", "42", True),
        ("42", "142", False),
        ("ÉTÉ", "l'été", True),
        ("[1,2,3]", "[1, 2, 3]", True),
        ("", "", False),
    ],
)
def test_answers_are_compared_word_by_word(
    make: Make, answer: str, result: str, produced: bool
) -> None:
    episode = make(answer=answer, turns=(replace(WORK, calls=(called("a", "b", result),)),))
    assert produces_answer(episode) is produced


def test_a_failed_call_produces_nothing(make: Make) -> None:
    failed = called("a", "b", "olleh", status=AnswerStatus.TOOL_ERROR)
    assert not produces_answer(make(turns=(replace(WORK, calls=(failed,)),)))


def test_numbers_have_one_spelling() -> None:
    assert words("007 and 1,200.50, x12y") == ["007", "and", "1200.5", "x", "12", "y"]


# Corrections


def test_a_correction_is_the_same_tool_with_other_arguments_that_succeeds(make: Make) -> None:
    failed = called("tosi", "abc", "needs key", "trial", AnswerStatus.TOOL_ERROR)
    mended = replace(TRIAL, calls=(failed, called("tosi", "def", "fed", "trial")))
    other = replace(TRIAL, calls=(failed, called("mira", "def", "fed", "trial")))
    same = replace(TRIAL, calls=(failed, called("tosi", "abc", "cba", "trial")))
    counts = [corrections(make(turns=(one, EXPERIENCE))) for one in (mended, other, same)]
    assert counts == [1, 0, 0]
    assert corrections(make(turns=(*faulty(2), *GOOD))) == 1


# Against each other


def candidate(episode: str, **changes: Any) -> Candidate:
    fields: dict[str, Any] = {
        "episode": episode,
        "task": episode,
        "source": "m",
        "tags": {},
        "reason": None,
        "error": "",
        "reward": 1.0,
        "calls": 2,
        "trial_calls": 1,
        "tokens": 100,
        "sampled_tokens": 50,
        "corrections": 0,
        "sequence": episode,
        "shingles": frozenset({hash_of(episode)}),
    }
    return Candidate(**{**fields, **changes})


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "big")


def test_the_same_calls_for_the_same_task_are_kept_once() -> None:
    same = [candidate(e, task="t", sequence="s") for e in ("a", "b")]
    other_task = candidate("c", task="u", sequence="s")
    selection = select([*same, other_task], RULES)
    assert selection.kept == ("a", "c")
    assert selection.dropped == {"b": Reason.DUPLICATE}


def test_calls_are_the_same_whatever_the_order_of_arguments(make: Make) -> None:
    def with_arguments(text: str) -> Candidate:
        call = replace(called("tosi", "", "olleh"), arguments=text)
        return examine(
            make(turns=(TRIAL, EXPERIENCE, replace(WORK, calls=(call,)))), RULES, Given()
        )

    one, two = with_arguments('{"a": 1, "b": "X"}'), with_arguments('{"b":"x","a":1}')
    assert one.sequence == two.sequence != with_arguments('{"a": 2, "b": "x"}').sequence


def test_nearly_the_same_words_are_kept_once_whatever_the_task(make: Make) -> None:
    long = " ".join(f"word{i} is" for i in range(60))
    texts = (long, long.replace("word59", "last"), " ".join(f"term{i} was" for i in range(60)))
    examined = [
        examine(
            make(f"e{i}", task=f"t{i}", turns=(replace(TRIAL, text=text), *GOOD[1:])),
            RULES,
            Given(),
        )
        for i, text in enumerate(texts)
    ]
    assert select(examined, RULES).dropped == {"e1": Reason.NEAR_DUPLICATE}
    assert select(examined, FilterConfig(near_duplicate=1.0)).dropped == {}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_near_duplicates_are_exactly_those_that_comparing_all_pairs_finds(
    threshold: float,
) -> None:
    sets = [frozenset((i * i + j * (i % 5 + 1)) % 37 for j in range(4 + i % 9)) for i in range(80)]
    ranked = [candidate(f"e{i:02d}", shingles=one) for i, one in enumerate(sets)]
    kept: list[Candidate] = []
    for one in ranked:
        alike = [len(one.shingles & o.shingles) / len(one.shingles | o.shingles) for o in kept]
        if all(jaccard < threshold for jaccard in alike):
            kept.append(one)
    found = {one.episode for one in near_duplicates(ranked, threshold)}
    assert found == {one.episode for one in ranked} - {one.episode for one in kept}
    assert found


def test_best_of_n_prefers_reward_then_few_calls_then_short_ones() -> None:
    group = [
        candidate("a", task="t", reward=0.9),
        candidate("b", task="t", calls=3),
        candidate("c", task="t", tokens=101),
        candidate("d", task="t"),
    ]
    assert select(group, FilterConfig(per_task=1)).kept == ("d",)
    assert select(group, FilterConfig(per_task=2)).kept == ("c", "d")
    dropped = select(group, FilterConfig(per_task=1)).dropped
    assert set(dropped.values()) == {Reason.PER_TASK}


def test_a_share_of_corrected_episodes_is_reached_by_dropping_others() -> None:
    group = [candidate(f"e{i}", corrections=int(i < 3)) for i in range(12)]
    selection = select(group, FilterConfig(corrected_share=0.5))
    assert len(selection.kept) == 6
    assert {"e0", "e1", "e2"} <= set(selection.kept)
    assert set(selection.dropped.values()) == {Reason.UNCORRECTED}
    assert select(group, FilterConfig(corrected_share=0.25)).dropped == {}


def test_no_value_of_a_tag_outnumbers_the_rarest() -> None:
    group = [candidate(f"e{i}", tags={"depth": "1" if i < 8 else "2"}) for i in range(11)]
    kept = select(group, FilterConfig(balance="depth")).kept
    assert len(kept) == 6 and {"e8", "e9", "e10"} <= set(kept)
    twice = select(group, FilterConfig(balance="depth", balance_ratio=2.0))
    assert len(twice.kept) == 9
    assert set(twice.dropped.values()) == {Reason.UNBALANCED}


def test_a_selection_is_the_same_every_time_and_keeps_the_order() -> None:
    group = [candidate(f"e{i:02d}", corrections=i % 2) for i in range(40)]
    rules = FilterConfig(corrected_share=0.8)
    assert select(group, rules) == select(group, rules)
    kept = select(group, rules).kept
    assert list(kept) == sorted(kept)
