"""Calls written and read in every format, and what a policy is told about broken ones."""

from time import process_time
from typing import Any

import pytest

from envs.errors import PolicyError, PolicyErrorKind
from envs.tools import ToolSet
from rollout.formats.deepseek import DeepseekFormat
from rollout.formats.glm import GlmFormat
from rollout.formats.gpt_oss import GptOssFormat
from rollout.formats.hermes import HermesFormat
from rollout.formats.llama3 import Llama3Format
from rollout.formats.mistral import MistralFormat
from rollout.formats.qwen3_coder import Qwen3CoderFormat
from rollout.formats.thinking import Thinking
from rollout.formats.turn_format import TurnFormat
from rollout.formats.written import ToolFormat
from rollout.parser import ParsedTurn, parse_turn

FORMATS: dict[str, ToolFormat] = {
    "hermes": HermesFormat(),
    "qwen3_coder": Qwen3CoderFormat(),
    "llama3": Llama3Format(),
    "mistral": MistralFormat(),
    "mistral-named": MistralFormat(listed=False),
    "glm": GlmFormat(),
    "glm-4.7": GlmFormat(lines=False),
    "deepseek": DeepseekFormat(),
    "deepseek-v3": DeepseekFormat(fenced=True),
    "gpt_oss": GptOssFormat(),
}
every_format = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
EVERYTHING: dict[str, Any] = {
    "q": 'é "q" \\ \n <|im_end|> 1e999',
    "limit": None,
    "exact": True,
    "tags": ["a", "b c"],
    "options": {"deep": [1, {"x": 2.5}]},
    "ratio": -0.5,
}
THINKING = Thinking("<think>", "</think>")
MALFORMED, UNCLOSED = PolicyErrorKind.MALFORMED_JSON, PolicyErrorKind.UNCLOSED_TAG
WRONG, UNKNOWN = PolicyErrorKind.WRONG_ARGUMENTS, PolicyErrorKind.UNKNOWN_TOOL
DS_BEGIN, DS_END = (f"<\uff5ctool\u2581calls\u2581{word}\uff5c>" for word in ("begin", "end"))
DS_CALL, DS_CALL_END = (f"<\uff5ctool\u2581call\u2581{word}\uff5c>" for word in ("begin", "end"))
DS_SEP = "<\uff5ctool\u2581sep\uff5c>"


def parsed(text: str, format: ToolFormat, tools: ToolSet) -> ParsedTurn:
    return parse_turn(text, tools, 4, TurnFormat(format))


@every_format
def test_what_is_written_is_read_again(format: ToolFormat, tools: ToolSet) -> None:
    calls = [("search", EVERYTHING), ("double", {"x": 21}), ("search", {"q": ""})]
    turn = parsed(format.join("I try.", calls), format, tools)
    assert [(call.name, call.arguments) for call in turn.calls] == calls
    answer = parsed(format.join("<answer>42</answer>", []), format, tools)
    assert (answer.answer, answer.calls) == ("42", ())


@every_format
def test_the_shape_in_the_prompt_is_the_shape_that_is_read(
    format: ToolFormat, tools: ToolSet
) -> None:
    shape = format.shape.replace("NAME", "search").replace("ARGUMENT", "q")
    example = format.example("search", {"q": "VALUE"})
    if isinstance(format, GptOssFormat):  # in words, since its tokens cannot stand in a prompt
        assert shape == example
        return
    for text in (shape, example):
        (call,) = parsed(text, format, tools).calls
        assert (call.name, call.arguments) == ("search", {"q": "VALUE"})


@every_format
def test_a_mark_in_a_string_is_text(format: ToolFormat, tools: ToolSet) -> None:
    inside = "</tool_call> <tool_call> [TOOL_CALLS] <think> <answer>1</answer> <|python_tag|>"
    if not isinstance(format, GptOssFormat):  # in its text a token ends the message
        inside += f" <|end|> {DS_CALL_END}"
    (call,) = parsed(format.join("", [("search", {"q": inside})]), format, tools).calls
    assert call.arguments == {"q": inside}


@every_format
def test_a_call_in_an_answer_is_no_call(format: ToolFormat, tools: ToolSet) -> None:
    if isinstance(format, GptOssFormat):
        pytest.skip("a message of the final channel calls nothing by itself")
    inside = format.join("", [("double", {"x": 1})])
    turn = parsed(f"<answer>write {inside}</answer>", format, tools)
    assert (turn.calls, turn.answer) == ((), f"write {inside}".strip())


@every_format
def test_too_many_calls_and_unknown_tools_are_typed(format: ToolFormat, tools: ToolSet) -> None:
    cases: list[tuple[list[tuple[str, Any]], PolicyErrorKind]] = [
        ([("double", {"x": 1})] * 5, PolicyErrorKind.TOO_MANY_CALLS),
        ([("triple", {"x": 1})], UNKNOWN),
        ([("double", {"y": 1})], WRONG),
        ([("double", {"x": "many"})], WRONG),
    ]
    for calls, kind in cases:
        with pytest.raises(PolicyError) as caught:
            parsed(format.join("", calls), format, tools)
        assert caught.value.kind is kind


@pytest.mark.parametrize(
    ("name", "text", "kind", "reason"),
    [
        (
            "hermes",
            '<tool_call>{"name": "double", "arguments": {"x": 1e999}}</tool_call>',
            MALFORMED,
            "1e",
        ),
        ("hermes", '<tool_call>{"name": "double"} and</tool_call>', MALFORMED, "more text"),
        ("hermes", "<tool_call>double(1)", UNCLOSED, "</tool_call>"),
        ("qwen3_coder", '<tool_call>{"name": "double"}</tool_call>', MALFORMED, "<function=NAME>"),
        ("qwen3_coder", "<tool_call><function=double></tool_call>", MALFORMED, "</function>"),
        (
            "qwen3_coder",
            "<tool_call><function=double><parameter=x>1</tool_call>",
            MALFORMED,
            "</parameter>",
        ),
        ("qwen3_coder", "<tool_call><function=double>", UNCLOSED, "</tool_call>"),
        ("glm", "<tool_call></tool_call>", MALFORMED, "name"),
        ("glm", "<tool_call>double<arg_key>x</arg_key></tool_call>", MALFORMED, "<arg_value>"),
        ("glm", "<tool_call>double<arg_key>x</tool_call>", MALFORMED, "</arg_key>"),
        ("glm", '<tool_call>{"name": "double"}</tool_call>', UNKNOWN, "double"),
        ("glm", "<tool_call>double", UNCLOSED, "</tool_call>"),
        ("llama3", '<|python_tag|>brave_search.call(query="x")', MALFORMED, '"parameters"'),
        ("llama3", '{"name": "double", "parameters": {"x": 1}', MALFORMED, '"parameters"'),
        ("llama3", '{"name": "double", "parameters": {"x": 1e999}}', MALFORMED, "1e999"),
        ("llama3", '{"name": "double", "parameters": {"x": 1}, "why": 1}', WRONG, "nothing else"),
        ("mistral", "[TOOL_CALLS]", MALFORMED, "[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS][]", MALFORMED, "empty"),
        ("mistral", '[TOOL_CALLS][{"name": "double"', MALFORMED, "[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS]double[ARGS]{x: 1}", MALFORMED, "property name"),
        ("mistral", '[TOOL_CALLS]{"x": 1}', WRONG, '"arguments"'),
        ("deepseek", DS_BEGIN, MALFORMED, DS_CALL),
        ("deepseek", f"{DS_CALL}double{DS_SEP}{{}}", UNCLOSED, DS_CALL_END),
        ("deepseek", f"{DS_BEGIN}{DS_CALL}double{{}}{DS_CALL_END}", MALFORMED, DS_SEP),
        ("deepseek", f"{DS_CALL}f{DS_SEP}double\n```json\n{{}}{DS_CALL_END}", MALFORMED, "```"),
        (
            "gpt_oss",
            "<|channel|>commentary to=functions.double<|message|>{x}<|call|>",
            MALFORMED,
            "commentary channel",
        ),
        ("gpt_oss", "<|channel|>commentary to=python<|message|>1<|call|>", UNKNOWN, "functions"),
        ("gpt_oss", "<|channel|>final<|message|><answer>42", UNCLOSED, "</answer>"),
    ],
)
def test_a_broken_call_is_a_typed_error_in_its_own_terms(
    name: str, text: str, kind: PolicyErrorKind, reason: str, tools: ToolSet
) -> None:
    with pytest.raises(PolicyError) as caught:
        parsed(text, FORMATS[name], tools)
    assert caught.value.kind is kind
    assert reason in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", ' <tool_call> {"arguments": {"x": 1}, "name": "double"} </tool_call>'),
        (
            "qwen3_coder",
            "<tool_call><function=double><parameter=x>1</parameter></function></tool_call>",
        ),
        ("glm", "<tool_call>double<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>"),
        ("llama3", 'I try:\n{"name": "double", "parameters": {"x": 1}}'),
        ("llama3", '<|python_tag|>{"type": "function", "name": "double", "parameters": {"x": 1}}'),
        ("llama3", '{"name": "double", "arguments": {"x": 1}}'),
        ("mistral", '[TOOL_CALLS] [{"name": "double", "arguments": {"x": 1}, "id": "012345678"}]'),
        ("mistral", '[TOOL_CALLS]double{"x": 1}'),
        ("mistral", '[TOOL_CALLS]double[CALL_ID]123456789[ARGS]{"x": 1}'),
        ("deepseek", f'{DS_BEGIN}{DS_CALL}double{DS_SEP}{{"x": 1}}{DS_CALL_END}{DS_END}'),
        (
            "deepseek",
            f'{DS_CALL}function{DS_SEP}double\n```json\n{{"x": 1}}\n```{DS_CALL_END}',
        ),
        ("gpt_oss", ' to=functions.double<|channel|>commentary json<|message|>{"x": 1}<|call|>'),
        (
            "gpt_oss",
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.double <|constrain|>json<|message|>{"x": 1}',
        ),
    ],
)
def test_spellings_that_models_use_are_read(name: str, text: str, tools: ToolSet) -> None:
    (call,) = parsed(text, FORMATS[name], tools).calls
    assert (call.name, call.arguments) == ("double", {"x": 1})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("true", True),
        ("True", True),
        ("12", "12"),
        ("", ""),
        ("[1", "[1"),
    ],
)
def test_text_becomes_what_the_schema_says(written: str, read: object, tools: ToolSet) -> None:
    key = "exact" if isinstance(read, bool) else "q"
    text = (
        f"<tool_call>search<arg_key>q</arg_key><arg_value>-</arg_value><arg_key>{key}</arg_key>"
        f"<arg_value>{written}</arg_value></tool_call>"
    )
    (call,) = parsed(text, FORMATS["glm"], tools).calls
    assert call.arguments[key] == read and type(call.arguments[key]) is type(read)


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"a": ["' * 4_000,
        "<tool_call>" * 20_000,
        "<tool_call>\n<function=a>\n<parameter=b>" * 4_000,
        "<tool_call>a<arg_key>b</arg_key><arg_value>" * 4_000,
        '{"name": ' * 10_000,
        '\n{"name": 1}' * 10_000,
        "[TOOL_CALLS][" * 10_000,
        f"{DS_BEGIN}{DS_CALL}" * 4_000,
        "<|channel|>commentary to=functions.a<|message|>{" * 4_000,
        "<answer>" * 20_000,
        "<think>" * 20_000,
        "</think>" * 20_000,
        "[" * 100_000,
        " " * 200_000,
    ],
    ids=lambda text: text[:14],
)
def test_a_long_broken_turn_is_read_in_no_time(text: str, tools: ToolSet) -> None:
    """Reading a turn of 150,000 characters is linear: quadratic steps would take minutes."""
    start = process_time()
    for format in FORMATS.values():
        for ending in ("", "</think>", "</tool_call>"):
            try:
                parse_turn(text + ending, tools, 4, TurnFormat(format, THINKING), opened=False)
            except PolicyError:
                continue
    assert process_time() - start < 5
