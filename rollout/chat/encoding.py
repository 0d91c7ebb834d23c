"""Texts to token ids and back, with parts that are not allowed to become control tokens."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from envs.errors import TemplateError
from envs.messages import MARKS
from rollout.chat.world_text import Hiding, control_pattern

_OPEN, _CLOSE = MARKS[3:5]
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
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
        self._texts.pop(-1 if self.unknown_id is None else self.unknown_id, None)
        """By id, without the unknown token: that stands for text."""

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
        ids = self._renamed.ids("".join(pieces))
        if self._controls_in(ids) == len(own):
            return ids
        ids = self._strictly_renamed.ids("".join(pieces))
        if self._controls_in(ids) == len(own):
            return ids
        # the world knows how the tokens are renamed: each sign of that by itself is harmless
        return [
            number
            for is_sign, group in groupby(pieces, lambda piece: piece == _OPEN)
            for number in (
                self.encode("".join(group))
                if is_sign
                else self._strictly_renamed.ids("".join(group))
            )
        ]

    def _controls_in(self, ids: Sequence[int]) -> int:
        return sum(number in self._texts for number in ids)

    @cached_property
    def _renamed(self) -> "_Renamed":
        """The same tokenizer with its control tokens under other names.

        With it one pass over the whole text is enough: the template's control tokens are written
        with their new names, and the old names are nothing but text.
        """
        renamed = Tokenizer(self._backend.model)
        renamed.normalizer = self._backend.normalizer  # type: ignore[assignment]
        renamed.pre_tokenizer = self._backend.pre_tokenizer  # type: ignore[assignment]
        originals = {}
        for number, token in sorted(self._backend.get_added_tokens_decoder().items()):
            name = _renamed(number) if token.content in self.controls else token.content
            originals[name] = number
            flags = {flag: getattr(token, flag) for flag in _FLAGS}
            renamed.add_tokens([AddedToken(name, **flags)])
        return _Renamed(renamed, originals)

    @cached_property
    def _strictly_renamed(self) -> "_Renamed":
        """The same for tokenizers whose ordinary vocabulary holds control tokens and puts them
        together from text; seconds for a large vocabulary.
        """
        names = {text: _renamed(number) for text, number in self.controls.items()}
        state = json.loads(self._backend.to_str())
        originals = {}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
            originals[token["content"]] = token["id"]
        state["post_processor"] = None
        state["model"] = _renamed_model(state["model"], names)
        return _Renamed(Tokenizer.from_str(json.dumps(state, ensure_ascii=False)), originals)


class _Renamed:
    """A tokenizer some of whose tokens have other names; its ids are the original ones."""

    def __init__(self, tokenizer: Tokenizer, originals: dict[str, int]) -> None:
        """`originals` are the original ids by name."""
        self._tokenizer = tokenizer
        ids = ((tokenizer.token_to_id(name), number) for name, number in originals.items())
        self._originals = {new: old for new, old in ids if new is not None and new != old}

    def ids(self, text: str) -> list[int]:
        found = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._originals.get(number, number) for number in found]


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
