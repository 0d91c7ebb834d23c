"""What a policy reads of an MCP server's answer: text as it is, everything else named.

The content is read leniently: a block that no version of the protocol knows is shown as JSON, and
never costs the rest of the answer.
"""

import json
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

_RESULT = "result"
"""The one key under which the official servers wrap a value that is no object."""


def text_of(content: JsonValue, structured: JsonValue) -> str:
    """Return the blocks of `content`, one below the other; and the structured content below them,
    unless they are the same.
    """
    blocks = content if isinstance(content, list) else [] if content is None else [content]
    shown = [_block(block) for block in blocks]
    if structured is not None and not _repeats(blocks, structured):
        shown.append(json.dumps(structured, ensure_ascii=False))
    return "\n".join(shown)


def _block(block: JsonValue) -> str:
    if not isinstance(block, dict):
        return block if isinstance(block, str) else json.dumps(block, ensure_ascii=False)
    match block.get("type"):
        case "text":
            return _word(block, "text")
        case "resource":
            return _resource(block.get("resource"))
        case "resource_link":
            facts = (_word(block, "mimeType"), _size(block.get("size")))
            named = _word(block, "title") or _word(block, "name")
            about = f": {text}" if (text := _word(block, "description")) else ""
            return _named("resource link", [f"{named} <{_word(block, 'uri')}>", *facts], about)
        case "image" | "audio" as kind:
            return _named(str(kind), [_word(block, "mimeType"), _data_size(block.get("data"))])
        case _:
            return json.dumps(block, ensure_ascii=False)


def _resource(resource: JsonValue) -> str:
    """Return the text of an embedded resource below its address; of other data only the size."""
    if not isinstance(resource, dict):
        return _named("resource", [])
    facts = [f"<{_word(resource, 'uri')}>", _word(resource, "mimeType")]
    text = resource.get("text")
    if isinstance(text, str):
        return f"{_named('resource', facts)}\n{text}"
    return _named("resource", [*facts, _data_size(resource.get("blob"))])


def _named(kind: str, facts: Sequence[str], about: str = "") -> str:
    said = ", ".join(fact for fact in facts if fact)
    return f"[{kind} {said}{about}]" if said or about else f"[{kind}]"


def _word(block: Mapping[str, JsonValue], key: str) -> str:
    value = block.get(key)
    return value if isinstance(value, str) else ""


def _size(size: JsonValue) -> str:
    return f"{size} bytes" if isinstance(size, int | float) else ""


def _data_size(data: JsonValue) -> str:
    """Return the size of base64 `data`."""
    if not isinstance(data, str):
        return ""
    digits = len(data.rstrip("="))
    return _size(digits * 3 // 4)


def _repeats(blocks: Sequence[JsonValue], structured: JsonValue) -> bool:
    """Whether text blocks say what `structured` says: as its JSON, or value by value."""
    texts = [
        block["text"]
        for block in blocks
        if isinstance(block, dict) and isinstance(block.get("text"), str)
    ]
    values = [structured]
    if isinstance(structured, dict) and structured.keys() == {_RESULT}:
        values.append(structured[_RESULT])
    said = [_value(text) for text in texts if isinstance(text, str)]
    for value in values:
        if any(_same(each, value) for each in said):
            return True
        if isinstance(value, list) and len(value) == len(said):
            return all(_same(a, b) for a, b in zip(said, value, strict=True))
    return False


def _value(text: str) -> JsonValue:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _same(said: JsonValue, value: JsonValue) -> bool:
    return said == value or (isinstance(value, str) and json.dumps(said) == value)
