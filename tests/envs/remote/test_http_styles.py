"""How arguments are written in a request: the table of styles in the OpenAPI specification."""

import httpx
import pytest
from pydantic import JsonValue

from envs.endpoints import HttpBody, HttpOperation, WireArgument
from envs.remote.http_request import RequestParts, Signature
from envs.remote.http_styles import header_text, path_text, query_pairs
from envs.tools import JsonObject

LIST: JsonValue = ["blue", "black", "brown"]
OBJECT: JsonValue = {"R": 100, "G": 200, "B": 150}


def wire(place: str, style: str = "", *, explode: bool | None = None, **more: object):
    fields = {"place": place, "name": "color", "style": style, "explode": explode, **more}
    return WireArgument.model_validate(fields)


@pytest.mark.parametrize(
    ("style", "explode", "text", "listed", "object_"),
    [
        ("matrix", False, ";color=blue", ";color=blue,black,brown", ";color=R,100,G,200,B,150"),
        (
            "matrix",
            True,
            ";color=blue",
            ";color=blue;color=black;color=brown",
            ";R=100;G=200;B=150",
        ),
        ("label", False, ".blue", ".blue,black,brown", ".R,100,G,200,B,150"),
        ("label", True, ".blue", ".blue.black.brown", ".R=100.G=200.B=150"),
        ("simple", False, "blue", "blue,black,brown", "R,100,G,200,B,150"),
        ("", True, "blue", "blue,black,brown", "R=100,G=200,B=150"),
    ],
)
def test_path_parameters_are_written_as_the_table_says(
    style: str, explode: bool, text: str, listed: str, object_: str
) -> None:
    given = wire("path", style, explode=explode)
    assert [path_text(given, value) for value in ("blue", LIST, OBJECT)] == [text, listed, object_]


@pytest.mark.parametrize(
    ("style", "explode", "listed", "object_"),
    [
        ("", None, "color=blue&color=black&color=brown", "R=100&G=200&B=150"),
        ("form", False, "color=blue,black,brown", "color=R,100,G,200,B,150"),
        ("spaceDelimited", None, "color=blue%20black%20brown", "color=R%20100%20G%20200%20B%20150"),
        ("pipeDelimited", False, "color=blue%7Cblack%7Cbrown", "color=R%7C100%7CG%7C200%7CB%7C150"),
        ("pipeDelimited", True, "color=blue&color=black&color=brown", "R=100&G=200&B=150"),
        (
            "deepObject",
            True,
            "color=blue&color=black&color=brown",
            "color%5BR%5D=100&color%5BG%5D=200&color%5BB%5D=150",
        ),
    ],
)
def test_query_parameters_are_written_as_the_table_says(
    style: str, explode: bool | None, listed: str, object_: str
) -> None:
    given = wire("query", style, explode=explode)
    assert [query(given, LIST), query(given, OBJECT)] == [listed, object_]


def query(given: WireArgument, value: JsonValue) -> str:
    return "&".join(query_pairs(given, value))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "color="),
        (True, "color=true"),
        (2.5, "color=2.5"),
        (None, ""),
        ([], ""),
        ({}, ""),
        ("a b&c,d/é", "color=a%20b%26c%2Cd%2F%C3%A9"),
        (["a,b", None, "c"], "color=a%2Cb&color=c"),
        ([{"x": 1}], "color=%7B%22x%22%3A1%7D"),
    ],
)
def test_values_of_every_kind_fit_into_a_query(value: JsonValue, text: str) -> None:
    assert query(wire("query"), value) == text


def test_objects_inside_of_deep_objects_go_on() -> None:
    value: JsonValue = {"price": {"gte": 5, "in": [1, 2]}, "none": None}
    text = "color%5Bprice%5D%5Bgte%5D=5&color%5Bprice%5D%5Bin%5D=1&color%5Bprice%5D%5Bin%5D=2"
    assert query(wire("query", "deepObject"), value) == text


def test_reserved_characters_stay_where_the_document_allows_them() -> None:
    given = wire("query", allow_reserved=True)
    assert query(given, "/a?b=c:d@e,[f]") == "color=/a?b=c:d@e,[f]"
    assert query(given, "a&b#c+d") == "color=a%26b%23c%2Bd"  # they would end or change the value


def test_content_is_written_in_its_media_type() -> None:
    assert query(wire("query", media_type="application/json"), {"a": [1]}) == (
        "color=%7B%22a%22%3A%5B1%5D%7D"
    )
    assert path_text(wire("path", media_type="text/plain"), "a/b") == "a%2Fb"
    assert header_text(wire("header", media_type="application/json"), [1, "x"]) == '[1,"x"]'


def test_headers_hold_lists_and_objects_unencoded() -> None:
    assert header_text(wire("header"), LIST) == "blue,black,brown"
    assert header_text(wire("header"), OBJECT) == "R,100,G,200,B,150"
    assert header_text(wire("header", explode=True), OBJECT) == "R=100,G=200,B=150"
    assert header_text(wire("header"), " a b ") == "a b"
    with pytest.raises(ValueError, match="printable ASCII"):
        header_text(wire("header"), "é")


def sent(operation: HttpOperation, arguments: JsonObject, **signature: object) -> httpx.Request:
    client = httpx.AsyncClient()
    client.cookies.set("sid", "old", domain="h.local")
    client.cookies.set("kept", "1", domain="h.local")
    added = Signature(**signature)  # type: ignore[arg-type]
    return RequestParts(operation, arguments).request(client, "http://h.local/v1/", added)


def test_cookies_of_the_call_win_over_those_of_the_session() -> None:
    places = {"sid": WireArgument(place="cookie", name="sid")}
    operation = HttpOperation(method="get", path="/x", arguments=places)
    request = sent(operation, {"sid": "a;b"}, cookies=("key=k",))
    assert request.headers["cookie"] == "kept=1; sid=a%3Bb; key=k"


def test_a_path_may_hold_several_parameters_in_one_part_and_a_query() -> None:
    places = {name: WireArgument(place="path", name=name) for name in ("a", "b")}
    places["q"] = WireArgument(place="query", name="q")
    operation = HttpOperation(method="get", path="/x/{a}:{b}.json?fixed=1", arguments=places)
    request = sent(operation, {"a": "m/n", "b": "{c}", "q": 2}, query=("key=k",))
    assert request.url.raw_path == b"/v1/x/m%2Fn:%7Bc%7D.json?fixed=1&q=2&key=k"
    with pytest.raises(ValueError, match="missing required argument 'b'"):
        sent(operation, {"a": "m"})


def body(media_type: str, form: str, *, required: bool = False, **places: WireArgument):
    given = HttpBody.model_validate({"media_type": media_type, "form": form, "required": required})
    return HttpOperation(method="post", path="/x", body=given, arguments=places)


def field(name: str, **more: object) -> WireArgument:
    return WireArgument.model_validate({"place": "field", "name": name, **more})


def test_an_urlencoded_form_holds_lists_objects_and_styles() -> None:
    operation = body(
        "application/x-www-form-urlencoded",
        "urlencoded",
        deep=field("meta", style="deepObject"),
        flat=field("ids", style="form", explode=False),
        typed=field("note", media_type="application/json"),
    )
    values: JsonObject = {
        "amount": 5,
        "tags": ["a", "b c"],
        "address": {"city": "Ås"},
        "deep": {"k": "v"},
        "flat": [1, 2],
        "typed": "x",
        "none": None,
    }
    request = sent(operation, values)
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.content.decode() == (
        "amount=5&tags=a&tags=b%20c&address=%7B%22city%22%3A%22%C3%85s%22%7D"
        "&meta%5Bk%5D=v&ids=1,2&note=%22x%22"
    )


def test_a_multipart_form_has_a_part_per_value_and_repeats_byte_for_byte() -> None:
    operation = body("multipart/form-data", "multipart", xml=field("xml", media_type="text/xml"))
    values: JsonObject = {"title": "Ås", "tags": ["a", "b"], "meta": {"k": [1]}, "xml": "<a/>"}
    first, second = sent(operation, values), sent(operation, values)
    assert first.read() == second.read()
    text = first.content.decode()
    assert text.count('name="tags"') == 2
    for part in (
        'name="title"\r\nContent-Type: text/plain\r\n\r\nÅs\r\n',
        'name="meta"\r\nContent-Type: application/json\r\n\r\n{"k":[1]}\r\n',
        'name="xml"\r\nContent-Type: text/xml\r\n\r\n<a/>\r\n',
    ):
        assert part in text
    boundary = first.headers["content-type"].partition("boundary=")[2]
    assert text.endswith(f"--{boundary}--\r\n")


@pytest.mark.parametrize(
    ("operation", "values", "content", "kind"),
    [
        (body("application/json", "json"), {}, b"", None),
        (body("application/json", "json", required=True), {}, b"{}", "application/json"),
        (
            body("application/merge-patch+json", "json"),
            {"a": None},
            b'{"a":null}',
            "application/merge-patch+json",
        ),
        (
            body("text/csv", "text", body=WireArgument(place="body", name="body")),
            {"body": "a,b\n1,2"},
            b"a,b\n1,2",
            "text/csv",
        ),
        (
            body(
                "application/x-www-form-urlencoded",
                "urlencoded",
                body=WireArgument(place="body", name="body"),
            ),
            {"body": {"a": 1}},
            b"a=1",
            "application/x-www-form-urlencoded",
        ),
    ],
)
def test_a_body_is_sent_in_its_media_type(
    operation: HttpOperation, values: JsonObject, content: bytes, kind: str | None
) -> None:
    request = sent(operation, values)
    assert (request.content, request.headers.get("content-type")) == (content, kind)
