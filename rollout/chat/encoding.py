"""Texts to token ids and back, with parts that are not allowed to become control tokens."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from envs.errors import TemplateError
from envs.messages import MARKS
from rollout.chat.world_text import Piece, control_pattern

_OPEN, _CLOSE = MARKS[3:5]
_MARKUP = re.compile(r"<[^<>\s]+>|<\||\|>|\[[^\[\]\s]+\]|\uff5c")
"""What an added token looks like that is not special, but structure all the same: `<think>`."""


class TextCodec:
    """A tokenizer's texts and ids; adds no token of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
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
        return self._tokenizer.encode(text, add_special_tokens=False)

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

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """Tokenise a text of which plain pieces do not become control tokens."""
        tokenizer, ids_of = self._renamed
        ids: list[int] = []
        text = ""
        for piece in pieces:
            if piece.plain and piece.text in MARKS:
                # such a character must not stand next to the renamed tokens' own ones
                ids += self._ids(tokenizer, ids_of, text) + self.encode(piece.text)
                text = ""
            elif piece.plain:
                text += piece.text
            else:
                text += self.pattern.sub(
                    lambda found: _renamed(self.controls[found[0]]), piece.text
                )
        return ids + self._ids(tokenizer, ids_of, text)

    @staticmethod
    def _ids(tokenizer: Tokenizer, ids_of: dict[int, int], text: str) -> list[int]:
        found = tokenizer.encode(text, add_special_tokens=False).ids
        return [ids_of.get(number, number) for number in found]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, int]]:
        """The same tokenizer with its control tokens under other names, and where its ids differ,
        the original ones.

        With it one pass over the whole text is enough: the template's control tokens are written
        with their new names, and the old names are nothing but text.
        """
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise TemplateError(
                "expected a fast tokenizer (a tokenizer.json), found "
                f"{type(self._tokenizer).__name__}: save the tokenizer of the model as a fast one"
            )
        names = {text: _renamed(number) for text, number in self.controls.items()}
        state = json.loads(backend.to_str())
        originals = {}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
            originals[token["content"]] = token["id"]
        state["post_processor"] = None
        state["model"] = _renamed_model(state["model"], names)
        renamed = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
        ids = [(renamed.token_to_id(text), number) for text, number in originals.items()]
        return renamed, {new: old for new, old in ids if new is not None and new != old}


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
