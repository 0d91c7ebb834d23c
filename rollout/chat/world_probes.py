"""Checks of a template with a tokenizer: no text is lost, none of the world becomes a control."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from envs.errors import TemplateError
from envs.messages import Message
from rollout.chat.encoding import TextCodec

_PLAIN = "two  blanks,\n\nlines. 3.50 <b> it's x=1"
_SIGNS = ("\t", "é", "你", "好", "😀")
_MOST = 16
"""Control tokens in one probe."""


class _Template(Protocol):
    """What is checked."""

    eos_token_id: int

    @property
    def structure_tokens(self) -> Mapping[str, int]: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def prompt(self, messages: Sequence[Message]) -> list[int]: ...

    def continuation(self, messages: Sequence[Message], *, last_id: int) -> list[int]: ...


def check_round_trip(codec: TextCodec) -> str:
    """Check that texts come out of the tokenizer as they went in; return the signs of a probe that
    become the unknown token, which a tokenizer with a small alphabet may do. Raises TemplateError.
    """
    lost = [sign for sign in _SIGNS if codec.unknown_id in codec.encode(f"a{sign}")]
    text = _PLAIN + " ".join(sign for sign in _SIGNS if sign not in lost)
    found = codec.decode(codec.encode(text))
    if found.removeprefix(" ") != text:  # some tokenizers begin every text with a blank
        raise TemplateError(
            "expected text to survive a round trip through the tokenizer, found that "
            f"{text!r} becomes {found!r}: make the folder's tokenizer.json and the tokenizer_class "
            "in its tokenizer_config.json agree (PreTrainedTokenizerFast takes the file as it is)"
        )
    return " ".join(lost)


def check_plain_text(template: _Template) -> None:
    """Check that control tokens in text of the world stay text. Raises TemplateError."""
    usual = {number: text for text, number in template.structure_tokens.items()}
    shown = [usual[number] for number in _asked(template, "x") if number in usual]
    tokens = list(dict.fromkeys([*shown, *usual.values()]))[:_MOST]
    text = f"x{'y'.join(tokens)}z"
    counts = [sum(number in usual for number in _asked(template, asked)) for asked in (text, "xz")]
    said = template.decode(_asked(template, text))
    if counts[0] != counts[1] or said.count(text) != _PLACES:
        raise TemplateError(
            "expected control tokens in a tool's answer or a question to stay plain text, found "
            f"{counts[0]} control tokens instead of {counts[1]} in {said[-200:]!r}: the chat "
            "template or the tokenizer changes such text; set model.chat_template to another"
        )


_PLACES = 4


def _asked(template: _Template, text: str) -> list[int]:
    """Return the ids of a dialogue that has `text` of the world in every place."""

    def told(role: str, name: str = "") -> Message:
        return Message(role, f"{text} ", ((0, len(text)),), name)  # type: ignore[arg-type]

    opening = template.prompt([told("system"), told("user")])
    after = [
        template.continuation([message], last_id=template.eos_token_id)
        for message in (told("tool", "probe_tool"), told("user"))
    ]
    return [*opening, *after[0], *after[1]]
