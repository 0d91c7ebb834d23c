"""Texts to token ids and back, with parts that are not allowed to become control tokens."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from envs.errors import TemplateError
from envs.messages import MARKS
from rollout.chat.world_text import Hiding, control_pattern

_OPEN, _CLOSE = MARKS[3:5]
_MARKUP = re.compile(r"<[^<>\s]+>|<\||\|>|\[[^\[\]\s]+\]|\uff5c")
"""What an added token looks like that is not special, but structure all the same: `<think>`."""


class TextCodec:
    """A tokenizer's texts and ids; adds no token of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises TemplateError for a tokenizer without a tokenizer.json."""
        self._tokenizer = tokenizer
        self._backend = _backend(tokenizer)
        self._backend.no_truncation()  # a tokenizer.json may hold both
        self._backend.no_padding()
        added = tokenizer.added_tokens_decoder.items()
        unknown = tokenizer.unk_token_id
        self.unknown_id = unknown if isinstance(unknown, int) else None
        self.controls = {
            str(token): number
            for number, token in added
            if token.special or _MARKUP.search(str(token))
        }
        """Text to id of every token that stands for structure, not for text: special tokens, and
        other added ones that are markup. Added words (a tiny model's phrases) are vocabulary.
        """
        self.pattern = control_pattern(self.controls)
        self.special = frozenset(str(token) for _, token in added if token.special)
        """Texts of the special tokens; no other token ends a turn."""
        self._texts = {number: text for text, number in self.controls.items()}

    def encode(self, text: str) -> list[int]:
        """Tokenise text; control tokens in it become control tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens included."""
        return str(
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def text_of(self, token_id: int) -> str:
        """Return the text of a control token; empty for other tokens."""
        return self._texts.get(token_id, "")

    def encode_hidden(self, rendered: str, hiding: Hiding) -> list[int]:
        """Tokenise a rendered text of which what is hidden does not become control tokens.

        Where the control tokens of the text itself are, the tokenizer says: with the placeholders.
        """
        placed = self._backend.encode(rendered, add_special_tokens=False)
        own = [
            (number, start, end)
            for number, (start, end) in zip(placed.ids, placed.offsets, strict=True)
            if rendered[start:end].strip() == self._texts.get(number)
        ]
        pieces: list[str] = []
        last = 0
        for number, start, end in own:
            pieces += [piece.text for piece in hiding.pieces(rendered[last:start])]
            pieces.append(_renamed(number))
            last = end
        pieces += [piece.text for piece in hiding.pieces(rendered[last:])]
        ids = self._plain_ids("".join(pieces))
        if sum(number in self._texts for number in ids) == len(own):
            return ids
        # the world knows how the tokens are renamed: each sign of that by itself is harmless
        return [
            number
            for is_sign, group in groupby(pieces, lambda piece: piece == _OPEN)
            for number in (
                self.encode("".join(group)) if is_sign else self._plain_ids("".join(group))
            )
        ]

    def _plain_ids(self, text: str) -> list[int]:
        """Tokenise a text whose control tokens are those with new names."""
        tokenizer, ids_of = self._renamed
        found = tokenizer.encode(text, add_special_tokens=False).ids
        return [ids_of.get(number, number) for number in found]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, int]]:
        """The same tokenizer with its control tokens under other names, and where its ids differ,
        the original ones.

        With it one pass over the whole text is enough: the template's control tokens are written
        with their new names, and the old names are nothing but text.
        """
        names = {text: _renamed(number) for text, number in self.controls.items()}
        state = json.loads(self._backend.to_str())
        originals = {}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
            originals[token["content"]] = token["id"]
        state["post_processor"] = None
        state["model"] = _renamed_model(state["model"], names)
        renamed = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
        ids = [(renamed.token_to_id(text), number) for text, number in originals.items()]
        return renamed, {new: old for new, old in ids if new is not None and new != old}


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TemplateError(
            "expected a fast tokenizer (a tokenizer.json), found "
            f"{type(tokenizer).__name__}: save the tokenizer of the model as a fast one"
        )
    return backend


def _renamed(number: int) -> str:
    return f"{_OPEN}{number}{_CLOSE}"


def _renamed_model(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return the `model` of a tokenizer.json without any way to put control tokens together."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): number for text, number in vocab.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
    return model
