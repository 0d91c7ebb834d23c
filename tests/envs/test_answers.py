"""What counts as the same answer, whatever keyboard or language it was written with."""

import json
import math
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.answers import last_number, one_spelling, whole_number
from envs.errors import DataFileError
from envs.scoring.answer_text import NumberScorer, TextScorer
from envs.tasks import EpisodeScorer, Scorer
from envs.tasksets.catalog.environment import ExactMatch
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.environment import FileEnvironment
from envs.tasksets.outside import Outside
from envs.tasksets.toolhop.environment import ToolHopScorer

MINUS, NARROW, THIN, HARD = "\u2212", "\u202f", "\u2009", "\u00a0"
TEXTS: list[Callable[[str], Scorer]] = [ExactMatch, TextScorer, ToolHopScorer]
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-42", -42),
        (f"{MINUS}42", -42),
        ("\u201342", -42),
        ("\uff0d42", -42),
        ("+42", 42),
        ("x = -42", -42),
        (f"it is {MINUS}42.", -42),
        ("10-4=6", 6),
        ("10 - 12 = -2", -2),
        ("from 40 to 42", 42),
        ("40 -42", -42),
        ("- 42", 42),
        ("3/4", 0.75),
        ("3 / 4", 0.75),
        ("3\u20444", 0.75),
        (f"{MINUS}3/4", -0.75),
        ("12/4 = 3", 3),
        ("\u00be", 0.75),
        ("1\u00bd", 1.5),
        ("1 3/4", 1.75),
        ("-1 3/4", -1.75),
        ("1,234", 1234),
        ("1,234,567.5", 1234567.5),
        ("1 234", 1234),
        ("-1 234 567", -1234567),
        (f"1{NARROW}234", 1234),
        (f"1{THIN}234", 1234),
        (f"1{HARD}234,", 1234),
        ("1'234.5", 1234.5),
        ("1\u2019234", 1234),
        ("1.234.567", 1234567),
        ("1_000", 1000),
        ("in 2020 300", 300),
        ("42%", 42),
        ("$42", 42),
        ("-$42", -42),
        ("$-42", -42),
        ("42 \u20ac", 42),
        ("\u20ac 42", 42),
        ("42.", 42),
        (".5", 0.5),
        ("1.5e-3", 0.0015),
        ("\u0664\u0662", 42),
        ("\uff14\uff12", 42),
        ("answer \u201442", 42),
    ],
)
def test_a_number_is_read(text: str, value: float) -> None:
    assert last_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "40-42",
        "40\u201342",
        "40\u201442",
        "40 - 42",
        f"40{MINUS}42",
        "40--42",
        "2024-01-15",
        "1/2/3",
        "3/0",
        "none",
        "",
        "-",
        "nan",
    ],
)
def test_what_is_no_number_is_none(text: str) -> None:
    assert last_number(text) is None
    assert whole_number(text) is None


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        (f"{MINUS}42", -42, 1),
        (f"{MINUS}42", 42, 0),
        ("-42", 42, 0),
        ("40-42", 42, 0),
        ("40-42", -42, 0),
        ("3/4", 0.75, 1),
        ("3/4", 4, 0),
        (f"1{NARROW}234", 1234, 1),
        (f"1{NARROW}234", 234, 0),
        ("1,234", 1234, 1),
        ("The answer is 42.", 42, 1),
        ("1e999", 42, 0),
    ],
)
def test_numbers_are_scored_by_their_value(answer: str, expected: float, right: float) -> None:
    assert NumberScorer(expected, 1e-6).score(answer).reward == right


@given(NUMBERS, st.sampled_from(["{}", "It is {}.", "({})", "x={} km", "a: {}", "{}%"]))
def test_a_number_in_a_sentence_is_that_number(number: float, sentence: str) -> None:
    for minus in ("-", MINUS):
        text = sentence.format(repr(number).replace("-", minus))
        assert last_number(text) == number, text
        assert NumberScorer(number, 1e-9).score(text).reward == 1


@given(st.integers(-(10**15), 10**15), st.sampled_from([",", "_", " ", "'", NARROW, THIN, HARD]))
def test_a_number_in_groups_is_that_number(number: int, group: str) -> None:
    text = f"{number:,}".replace(",", group)
    assert last_number(text) == whole_number(text) == number


@given(st.integers(-999, 999), st.integers(1, 999), st.sampled_from(["/", " / ", "\u2044"]))
def test_a_fraction_is_its_quotient(top: int, bottom: int, slash: str) -> None:
    assert last_number(f"{top}{slash}{bottom}") == top / bottom


@given(NUMBERS, NUMBERS)
def test_two_numbers_are_right_for_each_other_or_neither(one: float, other: float) -> None:
    there = NumberScorer(one, 0.0).score(repr(other)).reward
    back = NumberScorer(other, 0.0).score(repr(one)).reward
    assert there == back == float(one == other)


@given(st.text(max_size=40))
def test_reading_numbers_never_fails(text: str) -> None:
    for value in (last_number(text), whole_number(text)):
        assert value is None or not math.isnan(value)
    whole = whole_number(text)
    assert whole is None or whole == last_number(text.strip())


@given(st.text(alphabet="0123456789 -/,.'$%e\u2212\u202f\u2044\u00bd", max_size=30))
def test_a_whole_number_is_also_the_last_one(text: str) -> None:
    whole = whole_number(text)
    assert whole is None or whole == last_number(text.strip())


@pytest.mark.timeout(5)
@pytest.mark.parametrize("part", ["1 ", "1-", "1,", "1/", "-", "1 234 "])
def test_long_texts_are_read_in_linear_time(part: str) -> None:
    text = part * 20_000
    last_number(text)
    whole_number(text)


# Texts


@pytest.mark.parametrize("make", TEXTS)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("it's", "it\u2019s"),
        ('"yes"', "\u201cyes\u201d"),
        ("-42", f"{MINUS}42"),
        ("well-known", "well\u2011known"),
        ("New York", f"New{HARD}York"),
    ],
)
def test_spellings_of_one_text_are_equal(
    make: Callable[[str], Scorer], one: str, other: str
) -> None:
    assert make(one).score(other).reward == make(other).score(one).reward == 1


@pytest.mark.parametrize("make", TEXTS)
@pytest.mark.parametrize(("one", "other"), [("cafe", "caf\u00e9"), ("10\u00b2", "102"), ("a", "b")])
def test_other_texts_stay_other_texts(make: Callable[[str], Scorer], one: str, other: str) -> None:
    assert make(one).score(other).reward == make(other).score(one).reward == 0


@given(st.text(max_size=30), st.sampled_from(["NFC", "NFD"]))
def test_an_answer_is_right_for_itself_in_either_form(text: str, form: str) -> None:
    other = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    assert TextScorer(text).score(other).reward == 1
    assert TextScorer(other).score(text).reward == 1
    assert ExactMatch(text.strip()).score(other.strip()).reward == 1


@given(st.text(max_size=12), st.text(max_size=12))
def test_equality_of_texts_is_symmetric(one: str, other: str) -> None:
    assert TextScorer(one).score(other).reward == TextScorer(other).score(one).reward
    exact = [ToolHopScorer(a).score(b).parts["exact"] for a, b in ((one, other), (other, one))]
    assert exact[0] == exact[1] or not one.strip() or not other.strip()


@given(st.text())
def test_one_spelling_is_stable_and_leaves_ascii_alone(text: str) -> None:
    assert one_spelling(one_spelling(text)) == one_spelling(text)
    assert not text.isascii() or one_spelling(text) == text


# Expected numbers in task files


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("42", 42),
        (f"{MINUS}42", -42),
        ("3/4", 0.75),
        ("1,234", 1234),
        (-7, -7),
        ("$5", 5),
        ("1e3", 1000),
    ],
)
def test_an_expected_number_is_read_as_answers_are(
    numeric_task: Callable[[object], Scorer], answer: object, value: float
) -> None:
    assert numeric_task(answer) == NumberScorer(value, 1e-6)


@pytest.mark.parametrize("answer", ["40-42", "about 42", "42 apples", "inf", "nan", "", "- 42"])
def test_an_expected_number_that_is_none_is_refused(
    numeric_task: Callable[[object], Scorer], answer: object
) -> None:
    with pytest.raises(
        DataFileError, match="expected a number in `answer` for the scorer `numeric`"
    ):
        numeric_task(answer)


@pytest.fixture
def numeric_task(tmp_path_factory: pytest.TempPathFactory) -> Callable[[object], Scorer]:
    def scorer(answer: object) -> Scorer:
        folder = tmp_path_factory.mktemp("tasks")
        (folder / "shop.py").write_text('def f(x: int) -> int:\n    """F."""\n    return x\n')
        row = {
            "id": "a",
            "question": "?",
            "answer": answer,
            "scorer": "numeric",
            "tools": {"functions": "shop.py"},
        }
        (folder / "tasks.jsonl").write_text(json.dumps(row))
        nowhere = Outside(list_tools=lambda place: pytest.fail())
        made = FileEnvironment(FileEnvConfig(path=str(folder)), nowhere)
        scorer = made.all_tasks()[0].scorer
        assert not isinstance(scorer, EpisodeScorer)
        return scorer

    return scorer
