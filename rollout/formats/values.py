"""Arguments that a format writes as bare text: converted by the schema of the tool, and back."""

import json
from collections.abc import Mapping

from pydantic import JsonValue

from envs.tools import JsonObject
from rollout.formats.json_text import JsonFault, whole_json

_WORDS: Mapping[str, JsonValue] = {"true": True, "false": False, "null": None, "none": None}
"""Words that models write in Python's or JSON's spelling."""
_STRINGS = frozenset({"string", "str"})


def typed_arguments(texts: JsonObject, parameters: JsonObject) -> JsonObject:
    """Return the arguments of a call with the types that `parameters`, a JSON schema, gives them.

    Text that is not of its type stays text, so that the check of the arguments names it.
    """
    properties = parameters.get("properties")
    schemas = properties if isinstance(properties, dict) else {}
    return {
        name: typed(text, schemas.get(name)) if isinstance(text, str) else text
        for name, text in texts.items()
    }


def typed(text: str, schema: JsonValue) -> JsonValue:
    """Return `text` as a value of `schema`. Where a string is allowed, the text is the string."""
    types = _types(schema)
    nullable = "null" in types or (isinstance(schema, dict) and schema.get("nullable") is True)
    if nullable and text.strip() == "null":
        return None
    if types & _STRINGS:
        return text
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return whole_json(text)
    except JsonFault:
        return text


def written(value: JsonValue) -> str:
    """Return the text of a value: a string as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _types(schema: JsonValue) -> set[str]:
    """Return the JSON types that a schema allows; empty if it does not say."""
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type")
    found = {named} if isinstance(named, str) else set()
    if isinstance(named, list):
        found |= {name for name in named if isinstance(name, str)}
    if not found and isinstance(values := schema.get("enum"), list):
        found |= {"string" if isinstance(value, str) else "other" for value in values}
    for key in ("anyOf", "oneOf"):
        branches = schema.get(key)
        for branch in branches if isinstance(branches, list) else ():
            found |= _types(branch)
    return found
