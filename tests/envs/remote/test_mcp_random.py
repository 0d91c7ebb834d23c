"""Whatever a server sends is read: content, lists of tools, and its last words."""

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from envs.remote.last_words import LastWords
from envs.remote.mcp_content import text_of
from envs.remote.mcp_listing import read_listing
from tests.random_examples import examples

QUICK = settings(max_examples=examples(300), deadline=None)
KEYS = st.sampled_from(
    ["type", "text", "data", "resource", "uri", "name", "blob", "size", "result", "inputSchema"]
)
TEXTS = st.sampled_from(["text", "resource", "resource_link", "image", "audio", "object", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@QUICK
@given(content=JSON, structured=JSON)
def test_any_content_is_shown(content: JsonValue, structured: JsonValue) -> None:
    assert isinstance(text_of(content, structured), str)


@QUICK
@given(listed=st.lists(JSON, max_size=4))
def test_any_listing_is_read(listed: list[JsonValue]) -> None:
    found = read_listing(listed)
    assert len(found.tools) + len(found.left_out) == len(listed)
    assert all(tool.name for tool in found.tools)


@QUICK
@given(said=st.lists(st.binary(max_size=40), max_size=6), secret=st.text("abcXYZ019", min_size=6))
def test_last_words_are_one_clean_line_without_the_secret(said: list[bytes], secret: str) -> None:
    words = LastWords({"KEY": secret})
    for part in said:
        words.add(part + b" " + secret.encode() + b"\r\n")
    text = words.text()
    assert text.isprintable() or not text
    assert secret not in text
    assert len(text) < 4_000


def test_a_secret_is_hidden_whole_and_so_is_what_looks_like_one() -> None:
    words = LastWords({"KEY": "topsecret", "MODE": "fast"})
    words.say("mode fast, key topsecret")
    words.say("Authorization: Bearer abc.def, then https://me:pass@host/x")
    words.say("API_KEY='k-1234' and \x1b[1mbold\x1b[0m")
    assert words.text() == (
        "mode fast, key [KEY] | Authorization: Bearer [hidden], then https://me:[hidden]@host/x "
        "| API_KEY='[hidden]' and bold"
    )
