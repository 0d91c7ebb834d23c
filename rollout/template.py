"""Chat templates as append-only token streams: a prompt, then only what follows."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from envs.errors import MissingError, TemplateError
from envs.messages import Message

_PROBE_ANSWER = "PROBE-ANSWER"
_PROBES: tuple[tuple[Message, ...], ...] = (
    (Message("tool", "PROBE-TOOL"),),
    (Message("tool", "PROBE-TOOL"), Message("tool", "PROBE-SECOND")),
    (Message("user", "PROBE-USER"),),
)


class ChatTemplate:
    """A tokenizer's chat template, checked to extend its own prefix.

    What the policy sampled is never tokenised again: `prompt` gives the ids an episode starts with,
    and
    `continuation` the ids that follow a completion, so that the ids of an episode only grow at the
    end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise TemplateError(
                "the tokenizer has no chat template: set `chat_template` in tokenizer_config.json"
            )
        if not isinstance(tokenizer.eos_token_id, int):
            raise TemplateError(
                "the tokenizer has no eos_token: it must be the token that ends a turn"
            )
        self._eos = str(tokenizer.eos_token)
        self.eos_token_id = tokenizer.eos_token_id
        self._base, self._after_answer = self._check()
        self.wraps_answers = "<tool_response>" in self._render(
            self._dialogue(_PROBES[0]), open_turn=True
        )

    @classmethod
    def load(cls, model_path: Path) -> "ChatTemplate":
        """Load the tokenizer in folder `model_path`. Raises MissingError, TemplateError."""
        if not (model_path / "tokenizer_config.json").is_file():
            raise MissingError(
                f"no tokenizer in {model_path}: expected tokenizer_config.json there"
            )
        return cls(AutoTokenizer.from_pretrained(model_path))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return len(self._tokenizer)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts that become special tokens: roles, ends of turns; they belong to the template."""
        added = self._tokenizer.added_tokens_decoder.values()
        return tuple(str(token) for token in added if token.special)

    def encode(self, text: str) -> list[int]:
        """Tokenise plain text, without any token of the tokenizer's own."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a completion, its end-of-turn token left out."""
        ids = list(token_ids)
        if ids and ids[-1] == self.eos_token_id:
            ids.pop()
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, up to where the policy's first turn begins."""
        return self.encode(self._render(messages, open_turn=True))

    def continuation(self, messages: Sequence[Message], *, turn_ended: bool) -> list[int]:
        """Return the ids that follow a completion: `messages`, up to where the next turn begins.

        `turn_ended` is whether the completion's last id is the end-of-turn token; if not, it comes
        first.
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

    def _render(self, messages: Sequence[Message], *, open_turn: bool) -> str:
        rows = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                rows, tokenize=False, add_generation_prompt=open_turn
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
                f"the chat template refuses a system, user, assistant, tool conversation: {error}"
            ) from error
        if not base.startswith(opened + _PROBE_ANSWER):
            raise TemplateError(
                "the chat template cannot extend its own prefix: rendered with the answer, "
                f"the conversation does not begin as it did before: expected {_tail(opened)!r} "
                f"then the answer, found {_tail(base)!r}. Choose a template that only appends."
            )
        after = base[len(opened) + len(_PROBE_ANSWER) :]
        if not after.startswith(self._eos):
            raise TemplateError(
                f"the chat template does not end an assistant turn with eos_token {self._eos!r}, "
                f"found {after[:40]!r}: set eos_token to the token that ends a turn"
            )
        for text, probe in zip(longer, _PROBES, strict=True):
            if not text.startswith(base):
                raise TemplateError(
                    "the chat template cannot extend its own prefix: "
                    f"a following {probe[0].role} message "
                    "changes what was rendered before it. Choose a template that only appends."
                )
        return base, after.removeprefix(self._eos)


def _tail(text: str) -> str:
    return text[-60:]
