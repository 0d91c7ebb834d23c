"""How a model writes a turn, chosen from its chat template and its vocabulary."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rollout.config import ToolFormatName
from rollout.formats.deepseek import DeepseekFormat
from rollout.formats.glm import GlmFormat
from rollout.formats.gpt_oss import GptOssFormat, thought_before
from rollout.formats.hermes import HermesFormat
from rollout.formats.llama3 import Llama3Format
from rollout.formats.mistral import MistralFormat
from rollout.formats.qwen3_coder import Qwen3CoderFormat
from rollout.formats.thinking import FAMILIES, Spoken, Thinking
from rollout.formats.written import ToolFormat, TurnText

_SIGNS: Mapping[ToolFormatName, tuple[str, ...]] = {
    "gpt_oss": ("<|channel|>", "functions."),
    "deepseek": ("<\uff5ctool\u2581call",),
    "mistral": ("[TOOL_CALLS]",),
    "qwen3_coder": ("<function=", "<parameter="),
    "glm": ("<arg_key>", "<arg_value>"),
    "llama3": ("<|start_header_id|>", '"parameters": '),
    "hermes": ("<tool_call>", '"arguments": '),
}
"""Texts that the chat template of a family contains, all of them; the first family that fits."""


@dataclass(frozen=True, slots=True)
class TurnFormat:
    """How a model writes its tool calls and its thoughts."""

    tools: ToolFormat
    thinking: Thinking | None = None
    """Marks of its thoughts; None for models that do not think, and for gpt-oss."""
    as_template: bool = False
    """Whether the chat template writes calls in this format too, so that it may render tools."""

    def split(self, text: str, *, opened: bool = False) -> TurnText:
        """Return what a turn says and calls, without its thoughts.

        `opened` says that the prompt ended inside of a thought. Raises PolicyError for an opening
        without its end, and nothing else.
        """
        spoken = self._spoken(text, opened=opened)
        if spoken is None:
            return self.tools.split(text)
        found = self.tools.split(spoken.text)
        return TurnText(found.said, found.calls, spoken.open_thought)

    def _spoken(self, text: str, *, opened: bool) -> Spoken | None:
        """Return what is said outside of thoughts; None where the turn counts as it is.

        Also a model without marks of its own may have learnt to think between `<think>` and
        `</think>`, from demonstrations. Only both marks are a thought there: one alone is text.
        """
        if self.thinking is not None:
            return self.thinking.spoken(text, self.tools, opened=opened)
        usual = FAMILIES[0]
        start = text.find(usual.opening)
        if isinstance(self.tools, GptOssFormat) or start < 0 or usual.closing not in text[start:]:
            return None
        spoken = usual.spoken(text, self.tools, opened=False)
        return None if spoken.open_thought else spoken

    def opened_by(self, context: str) -> bool:
        """Whether a context ends inside of a thought."""
        return self.thinking is not None and self.thinking.opened_by(context)

    @property
    def thinks(self) -> bool:
        """Whether thoughts are told from actions."""
        return self.thinking is not None or isinstance(self.tools, GptOssFormat)

    @property
    def end_of_thought(self) -> str:
        """How a thought ends, in words for the policy."""
        return f"end it with {self.thinking.closing}" if self.thinking else "change the channel"

    def thought_before(self, thought: str, turn: str, *, opened: bool = False) -> str:
        """Return `turn` after a thought, which the prompt may have opened."""
        if self.thinking is None:
            return thought_before(thought, turn)
        return self.thinking.thought_before(thought, turn, opened=opened)


HERMES = TurnFormat(HermesFormat(), FAMILIES[0])
"""The format of a turn where nothing is known of the model: Hermes calls and <think> blocks."""


def choose_format(
    name: ToolFormatName, chat_template: str, vocabulary: Collection[str]
) -> TurnFormat:
    """Return the format `name`; for `auto`, that of the chat template, or else Hermes.

    `vocabulary` are the texts that are single tokens of their own. A model thinks if its template
    or its vocabulary has the marks of a family's thoughts.
    """
    written = _of_template(chat_template)
    chosen = (written or "hermes") if name == "auto" else name
    tools = _made(chosen, chat_template)
    channels = isinstance(tools, GptOssFormat)
    thinking = None if channels else _thinking(chat_template, vocabulary)
    return TurnFormat(tools, thinking, as_template=chosen == written)


def _of_template(chat_template: str) -> ToolFormatName | None:
    for name, signs in _SIGNS.items():
        if all(sign in chat_template for sign in signs):
            return name
    return None


def _made(name: ToolFormatName, chat_template: str) -> ToolFormat:
    match name:
        case "gpt_oss":
            return GptOssFormat()
        case "deepseek":
            return DeepseekFormat(fenced="```json" in chat_template)
        case "mistral":
            return MistralFormat(listed="[ARGS]" not in chat_template)
        case "qwen3_coder":
            return Qwen3CoderFormat()
        case "glm":
            return GlmFormat(lines="</arg_key><arg_value>" not in chat_template)
        case "llama3":
            return Llama3Format()
        case _:
            return HermesFormat()


def _thinking(chat_template: str, vocabulary: Collection[str]) -> Thinking | None:
    for marks in FAMILIES:
        both = (marks.opening, marks.closing)
        if all(mark in chat_template for mark in both) or all(mark in vocabulary for mark in both):
            return marks
    return None
