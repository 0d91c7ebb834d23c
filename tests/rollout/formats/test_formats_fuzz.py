"""Malformed completions of every format: parsed, or a typed error of the policy, nothing else."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.errors import PolicyError, PolicyErrorKind
from envs.tools import ToolSet
from rollout.formats.deepseek import DeepseekFormat
from rollout.formats.glm import GlmFormat
from rollout.formats.gpt_oss import GptOssFormat
from rollout.formats.hermes import HermesFormat
from rollout.formats.llama3 import Llama3Format
from rollout.formats.mistral import MistralFormat
from rollout.formats.qwen3_coder import Qwen3CoderFormat
from rollout.formats.thinking import FAMILIES
from rollout.formats.turn_format import TurnFormat
from rollout.formats.written import ToolFormat
from rollout.parser import ParsedTurn, parse_turn

FORMATS: tuple[ToolFormat, ...] = (
    HermesFormat(),
    Qwen3CoderFormat(),
    Llama3Format(),
    MistralFormat(),
    GlmFormat(),
    DeepseekFormat(fenced=True),
    GptOssFormat(),
)
FEW, MANY, TURNS = 5, 100, 100
"""100 examples of 100 completions: 10,000 per format."""
MARKS = {
    "hermes": ("<tool_call>", "</tool_call>", '{"name": "double", "arguments": {"x": 1}}'),
    "qwen3_coder": (
        *("<tool_call>", "</tool_call>", "<function=double>", "</function>", "<function="),
        *("<parameter=x>", "</parameter>", "<parameter=", "\n1\n"),
    ),
    "llama3": ("<|python_tag|>", '{"name": "double", "parameters": {"x": 1}}', ";", "\n"),
    "mistral": (
        *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "double"),
        '[{"name": "double", "arguments": {"x": 1}}]',
    ),
    "glm": (
        *("<tool_call>", "</tool_call>", "<tool_call>double", "<arg_key>", "</arg_key>"),
        *("<arg_value>", "</arg_value>", "<arg_key>x</arg_key><arg_value>1</arg_value>"),
    ),
    "deepseek": (
        *(f"<\uff5ctool\u2581calls\u2581{word}\uff5c>" for word in ("begin", "end")),
        *(f"<\uff5ctool\u2581call\u2581{word}\uff5c>" for word in ("begin", "end")),
        *("<\uff5ctool\u2581sep\uff5c>", "double", "function", "\n```json\n", "\n```"),
    ),
    "gpt_oss": (
        *("<|channel|>", "<|message|>", "<|end|>", "<|start|>assistant", "<|call|>"),
        *("commentary", " to=functions.double ", "<|constrain|>json", "analysis", "final"),
    ),
}
PIECES = (
    *("<answer>", "</answer>", "<experience>", "</experience>", "<trial/>", "<think>", "</think>"),
    *("{", "}", "[", "]", '"x"', ":", ",", '{"x": 1}', "1e999", "NaN", "null", "9" * 400),
    *("[" * 300, '{"x":' * 40, "\\ud800", "\\u0000", "\x00", "\ufeff", "é", "\U0001f600", "\r\n"),
    *("'", '"', "\\", " ", "x" * 300),
)


def fuzzed(format: ToolFormat, examples: int) -> Callable[[ToolSet], None]:
    """Return the test of so many scripts, the same ones each time."""
    marks = MARKS[format.name]
    pieces = st.sampled_from((*marks, *marks, *PIECES))
    turn = TurnFormat(format, None if format.name == "gpt_oss" else FAMILIES[0])

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.function_scoped_fixture),
        database=None,
        derandomize=True,
    )
    @given(drawn=st.lists(pieces, min_size=20, max_size=60), seed=st.integers(0, 2**32))
    def check(tools: ToolSet, drawn: list[str], seed: int) -> None:
        random = Random(seed)
        for _ in range(TURNS):
            text = "".join(random.choices(drawn, k=random.randrange(1, 10)))
            for opened in (False, True):
                try:
                    found = parse_turn(text, tools, 4, turn, opened=opened)
                except PolicyError as error:
                    assert error.kind in PolicyErrorKind
                    assert 0 < len(error.message) < 2_000
                else:
                    assert isinstance(found, ParsedTurn)

    def test(tools: ToolSet) -> None:
        check(tools)

    return test


every_format = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)


@every_format
def test_malformed_completions(format: ToolFormat, tools: ToolSet) -> None:
    fuzzed(format, FEW)(tools)


@pytest.mark.real
@every_format
def test_ten_thousand_malformed_completions(format: ToolFormat, tools: ToolSet) -> None:
    fuzzed(format, MANY)(tools)
