"""Nothing in a thought is an action, whatever marks the thought, closed or not."""

import pytest

from envs.tools import ToolSet
from rollout.formats.glm import GlmFormat
from rollout.formats.gpt_oss import GptOssFormat
from rollout.formats.mistral import MistralFormat
from rollout.formats.qwen3_coder import Qwen3CoderFormat
from rollout.formats.thinking import FAMILIES
from rollout.formats.turn_format import HERMES, TurnFormat
from rollout.parser import ParsedTurn, parse_turn

CALL = '<tool_call>{"name": "double", "arguments": {"x": 1}}</tool_call>'
QUOTED = '<tool_call>{"name": "search", "arguments": {"q": "a </think> and <think>"}}</tool_call>'
CODER = (
    "<tool_call>\n<function=search>\n<parameter=q>\na </think> and <think>\n</parameter>\n"
    "</function>\n</tool_call>"
)
DONE = "<answer>42</answer>"


def parsed(text: str, tools: ToolSet, format: TurnFormat = HERMES, *, opened: bool) -> ParsedTurn:
    return parse_turn(text, tools, 4, format, opened=opened)


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\nI must end with <answer>...</answer>. 21*2 = 42.\n</think>\n\n{DONE}",
        f"<think>\nMaybe {CALL}? Not needed.\n</think>\n{DONE}",
        f"<think>\nFormat: a <tool_call> with JSON inside.\n</think>\n{DONE}",
        f"<think>an <answer> or <experience>, <trial/></think>{DONE}",
        f"<think>the tag </think> and {CALL} and <answer>1</answer> no</think>{DONE}",
        f"<think>once</think><answer>41</answer><think>twice</think>{DONE}",
        f"{CALL} is what I drafted</think>{DONE}",
        f"<think><think>deeper</think><answer>1</answer></think>{DONE}",
        f"{DONE}<think>was it {CALL}?",
        f"{DONE}<think><answer>1</answer>",
    ],
)
@pytest.mark.parametrize("opened", [False, True])
def test_only_what_follows_the_last_thought_acts(text: str, opened: bool, tools: ToolSet) -> None:
    if opened and text.startswith(DONE):
        pytest.skip("a thought that the prompt opened and nobody closed")
    turn = parsed(text.removeprefix("<think>") if opened else text, tools, opened=opened)
    assert (turn.answer, turn.calls, turn.experience, turn.back_to_trial) == ("42", (), None, False)


@pytest.mark.parametrize("text", [f"hm {CALL}{DONE}", "", "<tool_call>", "<answer>"])
def test_a_thought_that_never_ends_does_nothing(text: str, tools: ToolSet) -> None:
    assert parsed(text, tools, opened=True) == ParsedTurn(open_thought=True)
    assert parsed(f"<think>{text}", tools, opened=False) == ParsedTurn(open_thought=True)


@pytest.mark.parametrize("thought", ["<think>hm</think>", ""])
@pytest.mark.parametrize(
    ("format", "call"),
    [(HERMES, QUOTED), (TurnFormat(Qwen3CoderFormat(), FAMILIES[0]), CODER)],
    ids=["hermes", "qwen3_coder"],
)
def test_marks_in_an_argument_are_text(
    thought: str, format: TurnFormat, call: str, tools: ToolSet
) -> None:
    turn = parsed(f"{thought}\n{call}", tools, format, opened=False)
    assert [call.arguments for call in turn.calls] == [{"q": "a </think> and <think>"}]
    assert not turn.open_thought


def test_a_drafted_call_that_quotes_a_mark_is_thought(tools: ToolSet) -> None:
    turn = parsed(f"<think>perhaps {QUOTED}? no</think>{DONE}", tools, opened=False)
    assert (turn.answer, turn.calls) == ("42", ())


@pytest.mark.parametrize(
    ("text", "answer", "calls"),
    [
        ("<think>\nIt is <answer>41</answer>, but try.\n</think>\n\nLet me check.", None, 0),
        (f"<think>perhaps {CALL}</think>{DONE}", "42", 0),
        (f"<think>no</think>{CALL}<think>{DONE}</think>{CALL}", None, 1),
        (f"{DONE} I closed </think> what I never opened", "42", 0),
        (f"<think>never closed {DONE}", "42", 0),
        (f"</think>{DONE}<think>", "42", 0),
        (QUOTED.replace("</think> and <think>", "<think> and </think>"), None, 1),
    ],
)
def test_a_model_without_marks_thinks_between_a_pair_of_the_usual_ones(
    text: str, answer: str | None, calls: int, tools: ToolSet
) -> None:
    turn = parsed(text, tools, TurnFormat(HERMES.tools), opened=False)
    assert (turn.answer, len(turn.calls)) == (answer, calls)


@pytest.mark.parametrize("marks", FAMILIES, ids=lambda marks: marks.opening)
def test_every_family_has_its_marks(marks: object, tools: ToolSet) -> None:
    format = TurnFormat(HERMES.tools, marks)  # pyright: ignore[reportArgumentType]
    text = format.thought_before(f"{CALL} {format.end_of_thought}", DONE)
    turn = parsed(text, tools, format, opened=False)
    assert (turn.answer, turn.calls) == ("42", ())


@pytest.mark.parametrize(
    "format",
    [
        TurnFormat(MistralFormat(), FAMILIES[1]),
        TurnFormat(GlmFormat(), FAMILIES[0]),
        TurnFormat(GptOssFormat()),
    ],
    ids=["mistral", "glm", "gpt_oss"],
)
def test_a_draft_in_another_format_is_thought(format: TurnFormat, tools: ToolSet) -> None:
    draft = format.tools.join("", [("double", {"x": 1})])
    if isinstance(format.tools, GptOssFormat):
        draft = 'to=functions.double {"x": 1} <answer>1</answer>'
    turn = parsed(
        format.thought_before(draft, format.tools.join(DONE, [])), tools, format, opened=False
    )
    assert (turn.answer, turn.calls) == ("42", ())


@pytest.mark.parametrize(
    ("text", "answer", "calls", "open_thought"),
    [
        ("<|channel|>analysis<|message|><answer>1</answer>", None, 0, True),
        (
            "<|channel|>analysis<|message|>hm <answer>1</answer><|end|>"
            "<|start|>assistant<|channel|>final<|message|><answer>42</answer>",
            "42",
            0,
            False,
        ),
        ('<|channel|>analysis to=functions.double<|message|>{"x": 1}<|call|>', None, 0, True),
        ("<|channel|>commentary<|message|><answer>1</answer><|end|>", None, 0, False),
        (
            '<|channel|>commentary to=functions.double<|message|>{"x": 1}<|call|><|start|>'
            "functions.double to=assistant<|channel|>final<|message|><answer>1</answer>",
            None,
            1,
            False,
        ),
        ("<answer>1</answer>", None, 0, False),
    ],
)
def test_channels_tell_thoughts_calls_and_answers(
    text: str, answer: str | None, calls: int, open_thought: bool, tools: ToolSet
) -> None:
    turn = parsed(text, tools, TurnFormat(GptOssFormat()), opened=False)
    assert (turn.answer, len(turn.calls), turn.open_thought) == (answer, calls, open_thought)


def test_of_several_answers_the_first_counts(tools: ToolSet) -> None:
    turn = parsed(f"<think>x</think>{DONE} or <answer>43</answer>", tools, opened=False)
    assert turn.answer == "42"


@pytest.mark.parametrize(
    ("context", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
        ("<think> is a tag<|im_end|>\n<|im_start|>assistant\n", False),
    ],
)
def test_a_prompt_opens_a_thought_by_its_end(context: str, opened: bool) -> None:
    assert HERMES.opened_by(context) is opened
