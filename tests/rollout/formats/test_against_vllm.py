"""Well-formed calls are read as vLLM's parsers for the same families read them.

vLLM's parser of gpt-oss needs a vocabulary that it downloads, so that format is not compared.
"""

import json
from importlib import import_module
from typing import Any

import pytest

from envs.tools import ToolSet
from rollout.formats.deepseek import DeepseekFormat
from rollout.formats.glm import GlmFormat
from rollout.formats.hermes import HermesFormat
from rollout.formats.llama3 import Llama3Format
from rollout.formats.mistral import MistralFormat
from rollout.formats.qwen3_coder import Qwen3CoderFormat
from rollout.formats.turn_format import TurnFormat
from rollout.formats.written import ToolFormat
from rollout.parser import parse_turn
from rollout.prompts import tool_schemas
from tests.rollout.chat.template_corpus import corpus_tokenizer

pytestmark = pytest.mark.real

PARSERS: dict[str, tuple[ToolFormat, str, str]] = {
    "hermes": (HermesFormat(), "hermes_tool_parser", "Hermes2ProToolParser"),
    "qwen3_coder": (Qwen3CoderFormat(), "qwen3_engine_tool_parser", "Qwen3EngineToolParser"),
    "llama3": (Llama3Format(), "llama_tool_parser", "Llama3JsonToolParser"),
    "mistral": (MistralFormat(), "mistral_tool_parser", "MistralToolParser"),
    "mistral-named": (MistralFormat(listed=False), "mistral_tool_parser", "MistralToolParser"),
    "glm": (GlmFormat(), "glm47_moe_tool_parser", "Glm47MoeModelToolParser"),
    "glm-4.7": (GlmFormat(lines=False), "glm47_moe_tool_parser", "Glm47MoeModelToolParser"),
    "deepseek": (DeepseekFormat(), "deepseekv31_tool_parser", "DeepSeekV31ToolParser"),
    "deepseek-v3": (DeepseekFormat(fenced=True), "deepseekv3_tool_parser", "DeepSeekV3ToolParser"),
}
TOKENS = (
    "<think></think><tool_call></tool_call><|python_tag|>[TOOL_CALLS][ARGS][CALL_ID]"
    "<arg_key></arg_key><arg_value></arg_value><function=</function><parameter=</parameter>"
    + "".join(
        f"<\uff5ctool\u2581{part}\u2581{word}\uff5c>"
        for part in ("call", "calls")
        for word in ("begin", "end")
    )
    + "<\uff5ctool\u2581sep\uff5c>"
)
CALLS: list[list[tuple[str, dict[str, Any]]]] = [
    [("double", {"x": 21})],
    [("double", {"x": 1}), ("double", {"x": 2})],
    [("search", {"q": "plain"})],
    [("search", {"q": 'é "quoted" \\ text', "limit": 3, "exact": True})],
    [("search", {"q": "12", "tags": ["a", "b"], "options": {"deep": [1]}, "ratio": -0.5})],
]


def read_by_vllm(
    module: str, name: str, text: str, tools: ToolSet
) -> list[tuple[str, dict[str, Any]]]:
    protocol = import_module("vllm.entrypoints.openai.chat_completion.protocol")
    schemas = tool_schemas(tools.tools)
    request = protocol.ChatCompletionRequest(
        model="m", messages=[{"role": "user", "content": "-"}], tools=schemas
    )
    tokenizer = corpus_tokenizer("unit", TOKENS)
    tokenizer.add_tokens(["[TOOL_CALLS]", "<arg_key>", "</arg_key>"])
    if "[ARGS]" in text:  # vLLM chooses between Mistral's two ways by the vocabulary
        tokenizer.add_tokens(["[ARGS]", "[CALL_ID]"])
    tokenizer.add_tokens(["<arg_value>", "</arg_value>"])
    parser = getattr(import_module(f"vllm.tool_parsers.{module}"), name)(tokenizer, request.tools)
    found = parser.extract_tool_calls(text, request).tool_calls
    return [(call.function.name, json.loads(call.function.arguments)) for call in found]


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("calls", CALLS, ids=range(len(CALLS)))
def test_a_call_is_read_as_vllm_reads_it(
    name: str, calls: list[tuple[str, dict[str, Any]]], tools: ToolSet
) -> None:
    format, module, parser = PARSERS[name]
    text = format.join("", calls)
    ours = [
        (call.name, call.arguments) for call in parse_turn(text, tools, 4, TurnFormat(format)).calls
    ]
    assert ours == calls
    assert read_by_vllm(module, parser, text, tools) == ours
