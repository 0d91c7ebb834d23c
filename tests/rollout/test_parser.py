import pytest

from envs.errors import PolicyError, PolicyErrorKind
from envs.tasks import Task
from rollout.parser import ParsedTurn, parse_turn

CALL = '<tool_call>{"name": "double", "arguments": {"x": 1}}</tool_call>'


def test_calls_experience_answer_and_way_back(task: Task) -> None:
    tools = task.tool_set
    both = parse_turn(f"thinking {CALL}\n{CALL}", tools, 4)
    assert [call.arguments for call in both.calls] == [{"x": 1}, {"x": 1}]
    assert parse_turn("<experience> it doubles </experience>", tools, 4).experience == "it doubles"
    assert parse_turn("<answer>42</answer>", tools, 4).answer == "42"
    assert parse_turn("<trial/>", tools, 4).back_to_trial
    assert parse_turn("I wonder", tools, 4) == ParsedTurn()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<tool_call>{", PolicyErrorKind.UNCLOSED_TAG),
        ("<answer>42", PolicyErrorKind.UNCLOSED_TAG),
        ("<tool_call>{]</tool_call>", PolicyErrorKind.MALFORMED_JSON),
        ('<tool_call>{"name": NaN}</tool_call>', PolicyErrorKind.MALFORMED_JSON),
        (r'<tool_call>{"name": "\ud800"}</tool_call>', PolicyErrorKind.MALFORMED_JSON),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", PolicyErrorKind.MALFORMED_JSON),
        ("<tool_call>" + "[" * 50 + "]" * 50 + "</tool_call>", PolicyErrorKind.MALFORMED_JSON),
        ("<tool_call>" + "9" * 5_000 + "</tool_call>", PolicyErrorKind.MALFORMED_JSON),
        ("<tool_call>[]</tool_call>", PolicyErrorKind.WRONG_ARGUMENTS),
        (
            '<tool_call>{"name": "double", "arguments": 3}</tool_call>',
            PolicyErrorKind.WRONG_ARGUMENTS,
        ),
        (
            '<tool_call>{"name": "double", "arguments": {}}</tool_call>',
            PolicyErrorKind.WRONG_ARGUMENTS,
        ),
        (
            '<tool_call>{"name": "double", "arguments": {"x": "1"}}</tool_call>',
            PolicyErrorKind.WRONG_ARGUMENTS,
        ),
        (
            '<tool_call>{"name": "triple", "arguments": {}}</tool_call>',
            PolicyErrorKind.UNKNOWN_TOOL,
        ),
        (
            '<tool_call>{"name": ["double"], "arguments": {}}</tool_call>',
            PolicyErrorKind.UNKNOWN_TOOL,
        ),
        (CALL * 5, PolicyErrorKind.TOO_MANY_CALLS),
    ],
)
def test_faults_are_typed(task: Task, text: str, kind: PolicyErrorKind) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_turn(text, task.tool_set, 4)
    assert caught.value.kind is kind
    assert 0 < len(caught.value.message) < 300
