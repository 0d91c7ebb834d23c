"""Perturbed documentation: paraphrased, shortened or removed, by rule."""

import re
from random import Random
from typing import Literal

from envs.tools import JsonObject

DocNoise = Literal["keep", "paraphrase", "shorten", "strip"]

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "accepts": ("takes",),
    "allows": ("lets", "permits"),
    "based": ("depending",),
    "calculate": ("compute", "work out"),
    "calculates": ("computes", "works out"),
    "compute": ("calculate",),
    "computes": ("calculates",),
    "converts": ("turns",),
    "create": ("make",),
    "creates": ("makes",),
    "delete": ("remove",),
    "deletes": ("removes",),
    "designed": ("meant",),
    "determine": ("find out", "work out"),
    "determines": ("finds out", "works out"),
    "display": ("show",),
    "extract": ("take out",),
    "extracts": ("takes out",),
    "fetch": ("get",),
    "find": ("look up", "locate"),
    "finds": ("looks up", "locates"),
    "get": ("fetch", "obtain"),
    "gets": ("fetches", "obtains"),
    "given": ("supplied",),
    "identify": ("recognise",),
    "list": ("enumerate",),
    "obtain": ("get",),
    "optional": ("not needed",),
    "perform": ("carry out",),
    "performs": ("carries out",),
    "provide": ("give", "supply"),
    "provides": ("gives", "supplies"),
    "required": ("needed",),
    "retrieve": ("fetch", "get"),
    "retrieves": ("fetches", "gets"),
    "return": ("give back",),
    "returns": ("gives back", "answers with"),
    "search": ("look",),
    "specified": ("stated", "named"),
    "update": ("change",),
    "use": ("employ",),
    "various": ("several",),
    "whether": ("if",),
}
_WORD = re.compile(r"(?<![\w`'\"./-])[A-Za-z]+(?![\w`'\"/-])")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")


def noisy_text(text: str, noise: DocNoise, rng: Random) -> str:
    """Return a description with `noise` applied; identifiers and quotes do not change."""
    match noise:
        case "paraphrase":
            return _paraphrase(text, rng)
        case "shorten":
            return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
        case "strip":
            return ""
        case _:
            return text


def noisy_parameter(schema: JsonObject, noise: DocNoise, rng: Random) -> JsonObject:
    """Return a parameter's schema with `noise` applied to its description.

    `shorten` and `strip` both remove the description.
    """
    text = schema.get("description")
    if noise == "keep" or not isinstance(text, str):
        return schema
    fresh = {key: value for key, value in schema.items() if key != "description"}
    if noise == "paraphrase":
        fresh["description"] = _paraphrase(text, rng)
    return fresh


def _paraphrase(text: str, rng: Random) -> str:
    def other_word(found: re.Match[str]) -> str:
        word = found[0]
        options = _SYNONYMS.get(word.lower())
        if options is None:
            return word
        fresh = rng.choice(options)
        return fresh[0].upper() + fresh[1:] if word[0].isupper() else fresh

    return _WORD.sub(other_word, text)
