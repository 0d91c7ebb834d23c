"""States of tools that whoever compares them could not read."""

import pytest

from envs.errors import ScoringError
from envs.evidence import state_of
from envs.tools import AnswerStatus, ToolAnswer


def said(text: str) -> ToolAnswer:
    return ToolAnswer(status=AnswerStatus.OK, text=text, seconds=0.0)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 200 + "]" * 200, '{"a":' * 90_000 + "1" + "}" * 90_000]
)
def test_a_forged_state_is_one_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ScoringError, match="the state of the tools is no JSON, or nested"):
        state_of(said(text))


@pytest.mark.parametrize("text", ["1", '{"Bank": {"a": [1, {"b": null}]}}', "[" * 90 + "]" * 90])
def test_any_other_state_is_read(text: str) -> None:
    assert state_of(said(text)) == text
