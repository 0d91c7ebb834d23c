"""Scorers of the answer alone: an expected text, or an expected number."""

import math
from dataclasses import dataclass

from envs.answers import last_number, one_spelling
from envs.tasks import Score


@dataclass(frozen=True, slots=True)
class TextScorer:
    """Correct when the answer equals, or contains, the expected text; case, white space and the
    spelling of quotes, hyphens and accents are ignored.
    """

    expected: str
    contains: bool = False

    def score(self, answer: str) -> Score:
        """Return 1 or 0, also as the component `answer`."""
        given, wanted = _plain(answer), _plain(self.expected)
        correct = wanted in given if self.contains and wanted else given == wanted
        return Score(float(correct), {"answer": float(correct)})


@dataclass(frozen=True, slots=True)
class NumberScorer:
    """Correct when the last number in the answer is the expected one, within the tolerance.

    `envs.answers.last_number` says what a number is.
    """

    expected: float
    tolerance: float

    def score(self, answer: str) -> Score:
        """Return 1 or 0, also as the component `answer`.

        The tolerance is relative to the expected number, or absolute if that is below 1 in size.
        """
        found = last_number(answer)
        correct = found is not None and math.isclose(
            found,
            self.expected,
            abs_tol=self.tolerance * max(1.0, abs(self.expected)),
            rel_tol=0.0,
        )
        return Score(float(correct), {"answer": float(correct)})


def _plain(text: str) -> str:
    return " ".join(one_spelling(text).lower().split()).removesuffix(".").rstrip()
