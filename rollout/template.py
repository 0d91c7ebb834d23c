"""Chat templates as append-only token streams: a prompt, then only continuations."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from envs.errors import MissingError, TemplateError
from envs.messages import Message
from envs.tools import JsonObject

_PROBE_ANSWER = "PROBE-ANSWER"
_PROBES: tuple[tuple[Message, ...], ...] = (
    (Message("tool", "PROBE-TOOL"),),
    (Message("tool", "PROBE-TOOL"), Message("tool", "PROBE-SECOND")),
    (Message("user", "PROBE-USER"),),
)

_END_TOKENS = ("<|call|>", "<|eom_id|>")
"""Tokens that end a turn in place of eos_token, where it calls a tool: gpt-oss, Llama 3.1."""


class ChatTemplate:
    """A tokenizer's chat template that is checked to be append-only.

    Sampled text is never tokenised again: `prompt` returns the ids at the start of an episode, and
    `continuation` the ids after a completion, so an episode's ids are only ever appended to.
    Raises TemplateError for a template that changes earlier text when messages are added.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise TemplateError(
                "expected a chat template, found none: set `chat_template` in tokenizer_config.json"
            )
        if not isinstance(tokenizer.eos_token_id, int):
            raise TemplateError(
                "expected an eos_token in the tokenizer, found none: set it to the token that ends "
                "a turn"
            )
        self._eos = str(tokenizer.eos_token)
        self.eos_token_id = tokenizer.eos_token_id
        added = tokenizer.added_tokens_decoder.items()
        self.end_token_ids = frozenset(
            {self.eos_token_id, *(i for i, token in added if str(token) in _END_TOKENS)}
        )
        """Ids that end a turn, each by itself."""
        self._base, self._after_answer = self._check()
        self.wraps_answers = "<tool_response>" in self._render(
            self._dialogue(_PROBES[0]), open_turn=True
        )

    @classmethod
    def load(cls, model_path: Path) -> "ChatTemplate":
        """Load the tokenizer in folder `model_path`. Raises MissingError, TemplateError."""
        if not (model_path / "tokenizer_config.json").is_file():
            raise MissingError(
                f"expected a tokenizer in {model_path}, found no tokenizer_config.json there: "
                "check the path of the model"
            )
        return cls(AutoTokenizer.from_pretrained(model_path))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, including added tokens."""
        return len(self._tokenizer)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts that become special tokens, for example roles and ends of turns."""
        added = self._tokenizer.added_tokens_decoder.values()
        return tuple(str(token) for token in added if token.special)

    @property
    def chat_template(self) -> str:
        """Text of the chat template."""
        return str(self._tokenizer.chat_template)

    @property
    def vocabulary(self) -> frozenset[str]:
        """Texts that are one token wherever they occur, special or not."""
        return frozenset(map(str, self._tokenizer.added_tokens_decoder.values()))

    @cached_property
    def renders_tools(self) -> bool:
        """Whether the chat template lists the tools that it is given."""
        probe: JsonObject = {
            "type": "function",
            "function": {
                "name": "probe_tool",
                "description": "PROBE",
                "parameters": {"type": "object", "properties": {}},
            },
        }
        messages = [Message("system", "PROBE-SYSTEM"), Message("user", "PROBE")]
        return "probe_tool" in self._render(messages, open_turn=True, tools=[probe])

    def encode(self, text: str) -> list[int]:
        """Tokenise plain text without adding special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a completion without its end-of-turn token."""
        ids = list(token_ids)
        if ids and ids[-1] in self.end_token_ids:
            ids.pop()
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[JsonObject] | None = None
    ) -> list[int]:
        """Return the ids of a conversation up to the start of the policy's first turn.

        The chat template lists `tools`, if it `renders_tools`.
        """
        return self.encode(self._render(messages, open_turn=True, tools=tools))

    def continuation(self, messages: Sequence[Message], *, turn_ended: bool) -> list[int]:
        """Return the ids after a completion: `messages`, up to the start of the next turn.

        `turn_ended` says whether the completion's last id is the end-of-turn token; if not, the
        result starts with that token.
        """
        dialogue = self._dialogue(messages)
        text = self._after_answer + self._render(dialogue, open_turn=True)[len(self._base) :]
        return self.encode(text if turn_ended else self._eos + text)

    def _dialogue(self, messages: Sequence[Message]) -> list[Message]:
        return [
            Message("system", "PROBE-SYSTEM"),
            Message("user", "PROBE"),
            Message("assistant", _PROBE_ANSWER),
            *messages,
        ]

    def _render(
        self,
        messages: Sequence[Message],
        *,
        open_turn: bool,
        tools: Sequence[JsonObject] | None = None,
    ) -> str:
        rows = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                rows,
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=open_turn,
            )
        )

    def _check(self) -> tuple[str, str]:
        """Return the rendered probe dialogue and what follows its answer's end-of-turn token."""
        try:
            opened = self._render(self._dialogue(())[:2], open_turn=True)
            base = self._render(self._dialogue(()), open_turn=False)
            longer = [self._render(self._dialogue(probe), open_turn=True) for probe in _PROBES]
        except Exception as error:
            raise TemplateError(
                "expected a chat template for system, user, assistant and tool messages, found one "
                f"that fails on them: {error}"
            ) from error
        if not base.startswith(opened + _PROBE_ANSWER):
            raise TemplateError(
                "the chat template cannot extend its own prefix: with an answer added, the "
                f"conversation starts differently: expected {_tail(opened)!r} "
                f"then the answer, found {_tail(base)!r}. Choose a template that only appends."
            )
        after = base[len(opened) + len(_PROBE_ANSWER) :]
        if not after.startswith(self._eos):
            raise TemplateError(
                f"expected the chat template to end an assistant turn with eos_token {self._eos!r},"
                f" found {after[:40]!r}: set eos_token to the token that ends a turn"
            )
        for text, probe in zip(longer, _PROBES, strict=True):
            if not text.startswith(base):
                raise TemplateError(
                    "the chat template cannot extend its own prefix: "
                    f"a following {probe[0].role} message "
                    "changes the text before it. Choose a template that only appends."
                )
        return base, after.removeprefix(self._eos)


def _tail(text: str) -> str:
    return text[-60:]
