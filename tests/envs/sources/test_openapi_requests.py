"""From operations to requests: names, bodies, styles, credentials, servers."""

import json

import pytest

from envs.endpoints import (
    BasicCredential,
    ClientCredential,
    HttpEndpoint,
    HttpOperation,
    TokenCredential,
)
from envs.errors import DataFileError
from envs.sources.openapi.options import GivenCredential, RealApi
from envs.sources.openapi.tool_set import real_tool_set, simulated_tool_set
from envs.tools import ToolSet
from tests.envs.sources.documents import document, parameters, posting, properties

# Names and arguments


def test_names_of_every_script_stay_and_others_are_told_apart() -> None:
    ids = ["查询天气", "मौसम", "größe.lesen", "a/b", "a b", "--", "x" * 90]
    paths = {f"/{number}": {"get": {"operationId": name}} for number, name in enumerate(ids)}
    names = [tool.name for tool in simulated_tool_set(document(paths)).tools]
    assert names == ["查询天气", "मौसम", "größe_lesen", "a_b", "a_b_2", "--", "x" * 64]
    chosen = simulated_tool_set(document(paths), operations=["größe.lesen", "मौसम", "GET /0"])
    assert [tool.name for tool in chosen.tools] == ["größe_lesen", "मौसम", "查询天气"]


def test_an_id_that_two_operations_share_has_to_be_a_path() -> None:
    paths = {"/a": {"get": {"operationId": "x"}}, "/b": {"get": {"operationId": "x"}}}
    with pytest.raises(DataFileError, match="found GET /a, GET /b"):
        simulated_tool_set(document(paths), operations=["x"])


def test_a_path_parameter_keeps_its_name() -> None:
    string = {"schema": {"type": "string"}}
    given = [
        {"name": "id", "in": "query", **string},
        {"name": "id", "in": "path", "required": True, **string},
        {"name": "stray", "in": "path", "required": True, **string},
    ]
    found = parameters(simulated_tool_set(document({"/u/{id}": {"put": {"parameters": given}}})))
    assert list(found["properties"]) == ["id_in_query", "id"]
    assert found["required"] == ["id"]


def test_required_arguments_with_a_default_may_be_left_out() -> None:
    given = [
        {"name": "user", "in": "path", "required": True, "schema": {"default": "me"}},
        {"name": "v", "in": "query", "required": True, "schema": {"default": "1"}},
        {"name": "n", "in": "query", "schema": {"default": 5}},
    ]
    text = document({"/u/{user}": {"get": {"parameters": given}}})
    (operation,) = endpoint(real_tool_set(text, RealApi(base_url="http://h.local"))).operations
    assert operation.defaults == {"user": "me", "v": "1"}
    assert parameters(simulated_tool_set(text))["required"] == []


def endpoint(tool_set: ToolSet) -> HttpEndpoint:
    assert isinstance(tool_set.endpoint, HttpEndpoint)
    return tool_set.endpoint


def only(text: str, **api: object) -> HttpOperation:
    given = RealApi.model_validate({"base_url": "http://h.local/v1", **api})
    return endpoint(real_tool_set(text, given)).operations[0]


# Bodies


def with_body(content: object, **body: object) -> str:
    return document(
        {"/x": {"post": {"operationId": "x", "requestBody": {"content": content, **body}}}}
    )


FIELDS = {"schema": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}}
FILE = {"type": "string", "format": "binary"}


def multipart(schema: object) -> dict:
    return {"multipart/form-data": {"schema": schema}}


@pytest.mark.parametrize(
    ("content", "media_type", "form"),
    [
        ({"text/xml": {}, "application/vnd.x+json": FIELDS}, "application/vnd.x+json", "json"),
        ({"*/*": FIELDS}, "application/json", "json"),
        ({"application/json; charset=utf-8": FIELDS}, "application/json; charset=utf-8", "json"),
        ({"application/merge-patch+json": FIELDS}, "application/merge-patch+json", "json"),
        (
            {"multipart/form-data": FIELDS, "application/x-www-form-urlencoded": FIELDS},
            "application/x-www-form-urlencoded",
            "urlencoded",
        ),
        ({"multipart/form-data": FIELDS}, "multipart/form-data", "multipart"),
        ({"text/plain": {"schema": {"type": "string"}}}, "text/plain", "text"),
        ({"text/csv": {}}, "text/csv", "text"),
        ({"application/xml": {"schema": {"type": "string"}}}, "application/xml", "text"),
    ],
)
def test_a_body_is_sent_in_a_media_type_of_the_document(
    content: object, media_type: str, form: str
) -> None:
    operation = only(with_body(content, required=True))
    assert operation.body is not None
    assert (operation.body.media_type, operation.body.form) == (media_type, form)
    simulated_tool_set(with_body(content))


@pytest.mark.parametrize(
    "content",
    [
        {"application/octet-stream": {"schema": FILE}},
        {"image/png": {}},
        {"multipart/form-data": {"schema": {"properties": {"file": FILE}}}},
        {
            "multipart/form-data": {
                "schema": {"required": ["f"], "properties": {"f": FILE, "t": {}}}
            }
        },
        {
            "multipart/form-data": {
                "schema": {"properties": {"f": {"type": "array", "items": FILE}}}
            }
        },
        {"application/xml": FIELDS},
        {"application/x-www-form-urlencoded": {"schema": {"type": "array"}}},
        {},
    ],
)
def test_one_upload_does_not_cost_the_document(content: object) -> None:
    paths = json.loads(with_body(content))["paths"] | {"/ok": {"get": {"operationId": "ok"}}}
    tool_set = simulated_tool_set(document(paths))
    assert [tool.name for tool in tool_set.tools] == ["ok"]
    assert [one.name for one in tool_set.left_out] == ["x"]
    assert tool_set.left_out[0].why.startswith("POST /x: expected")


def test_a_file_that_may_be_left_out_is_left_out() -> None:
    schema = {"properties": {"file": FILE, "note": {"type": "string"}}}
    tool_set = simulated_tool_set(with_body({"multipart/form-data": {"schema": schema}}))
    assert list(properties(tool_set)) == ["note"]


def test_other_fields_are_allowed_where_the_document_says_so() -> None:
    schema = {"properties": {"a": {}}, "additionalProperties": {"type": "string"}}
    found = parameters(simulated_tool_set(posting(schema)))
    assert found["additionalProperties"] == {"type": "string"}
    schema = {"properties": {"a": {}}, "additionalProperties": True}
    assert parameters(simulated_tool_set(posting(schema)))["additionalProperties"] is True
    assert (
        parameters(simulated_tool_set(posting({"properties": {"a": {}}})))["additionalProperties"]
        is False
    )


def test_styles_of_parameters_and_forms_reach_the_request() -> None:
    given = [
        {"name": "ids", "in": "query", "explode": False, "schema": {"type": "array"}},
        {
            "name": "f",
            "in": "query",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        {"name": "raw", "in": "query", "allowReserved": True, "schema": {"type": "string"}},
    ]
    encoding = {"meta": {"style": "deepObject"}, "note": {"contentType": "application/json"}}
    schema = {"properties": {"meta": {"type": "object"}, "note": {}, "a": {}}}
    content = {"application/x-www-form-urlencoded": {"schema": schema, "encoding": encoding}}
    paths = {"/x": {"post": {"parameters": given, "requestBody": {"content": content}}}}
    found = only(document(paths)).arguments
    assert found["ids"].explode is False
    assert found["f"].media_type == "application/json"
    assert found["raw"].allow_reserved
    assert (found["meta"].style, found["note"].media_type) == ("deepObject", "application/json")
    assert (found["a"].style, found["a"].media_type) == ("", "")


@pytest.mark.parametrize(
    "parameter",
    [
        {"name": "x", "in": "query", "style": "matrix"},
        {"name": "a b", "in": "header"},
        {"name": "x", "in": "body"},
        {"in": "query"},
    ],
)
def test_a_parameter_that_cannot_be_sent_costs_its_operation(parameter: object) -> None:
    paths = {"/ok": {"get": {}}, "/x": {"get": {"parameters": [parameter]}}}
    assert [one.name for one in simulated_tool_set(document(paths)).left_out] == ["get_x"]


# Security


SCHEMES = {
    "basic": {"type": "http", "scheme": "basic"},
    "bearer": {"type": "http", "scheme": "Bearer"},
    "digest": {"type": "http", "scheme": "digest"},
    "key": {"type": "apiKey", "in": "header", "name": "X-Key"},
    "query": {"type": "apiKey", "in": "query", "name": "k"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "sid"},
    "tls": {"type": "mutualTLS"},
    "oauth": {
        "type": "oauth2",
        "flows": {"clientCredentials": {"tokenUrl": "https://h.local/token", "scopes": {}}},
    },
}


def secured(*alternatives: object, root: object = None) -> str:
    operation = {"security": [*alternatives]} if alternatives else {}
    if alternatives == ([],):
        operation = {"security": []}
    parts: dict[str, object] = {"components": {"securitySchemes": SCHEMES}}
    if root is not None:
        parts["security"] = root
    return document({"/x": {"get": operation}, "/y": {"get": {"security": []}}}, "3.1.0", **parts)


def sent(text: str, **api: object) -> tuple[dict, bool]:
    given = RealApi.model_validate({"base_url": "https://h.local", **api})
    found = endpoint(real_tool_set(text, given))
    first = found.operations[0]
    return {name: found.credentials[name] for name in first.credentials}, first.needs_credentials


@pytest.mark.parametrize(
    ("scheme", "credential"),
    [
        ("basic", BasicCredential(variable="T")),
        ("bearer", TokenCredential(variable="T")),
        ("key", TokenCredential(variable="T", name="X-Key", prefix="")),
        ("query", TokenCredential(variable="T", place="query", name="k", prefix="")),
        ("cookie", TokenCredential(variable="T", place="cookie", name="sid", prefix="")),
        ("oauth", TokenCredential(variable="T")),
    ],
)
def test_one_secret_is_sent_as_the_operation_requires(scheme: str, credential: object) -> None:
    for text in (secured({scheme: []}), secured(root=[{scheme: []}])):
        assert sent(text, token_variable="T") == ({scheme: credential}, True)
    assert sent(secured({scheme: []}), credentials={scheme: {"variable": "T"}}) == (
        {scheme: credential},
        True,
    )


def test_alternatives_and_combinations_are_chosen_by_what_the_user_has() -> None:
    text = secured({"oauth": ["read"]}, {"basic": [], "key": []}, {"bearer": []})
    both = {"basic": {"user_variable": "U", "password_variable": "P"}, "key": {"variable": "K"}}
    assert list(sent(text, credentials=both)[0]) == ["basic", "key"]
    assert list(sent(text, credentials={"bearer": {"variable": "B"}})[0]) == ["bearer"]
    assert list(sent(text, token_variable="T")[0]) == ["oauth"]
    optional = secured({"bearer": []}, {})
    assert sent(optional, token_variable="T") == ({"bearer": TokenCredential(variable="T")}, False)
    assert sent(optional) == ({}, False)


def test_an_operation_without_security_sends_nothing() -> None:
    assert sent(secured([], root=[{"bearer": []}]), token_variable="T") == ({}, False)
    assert sent(secured({"bearer": []})) == ({}, True)


def test_a_document_that_never_says_security_sends_what_the_user_has() -> None:
    bare = document({"/x": {"get": {}}})
    assert sent(bare, token_variable="T") == ({"token": TokenCredential(variable="T")}, False)
    schemes = {"securitySchemes": {"key": SCHEMES["key"]}}
    named = document({"/x": {"get": {}}}, components=schemes)
    assert list(sent(named, token_variable="T")[0]) == ["key"]


def test_clients_of_oauth_name_their_scopes_and_an_allowed_server() -> None:
    given = {"client_id_variable": "I", "client_secret_variable": "S"}
    found, _ = sent(secured({"oauth": ["read", "list"]}), credentials={"oauth": given})
    assert found == {
        "oauth (read list)": ClientCredential(
            id_variable="I",
            secret_variable="S",
            token_url="https://h.local/token",
            scopes=("read", "list"),
        )
    }
    elsewhere = {**given, "token_url": "https://other.local/token", "scopes": []}
    text = secured({"oauth": ["read"]})
    with pytest.raises(DataFileError, match=r"an allowed host, found https://other\.local"):
        sent(text, credentials={"oauth": elsewhere})
    sent(text, credentials={"oauth": elsewhere}, allowed_hosts=["other.local"])


def test_a_prefix_makes_other_schemes_possible() -> None:
    bot = {"prefix": "Bot ", "variable": "T"}
    key = {"securitySchemes": {"bot": {"type": "apiKey", "in": "header", "name": "Authorization"}}}
    text = document({"/x": {"get": {"security": [{"bot": []}]}}}, components=key)
    assert sent(text, credentials={"bot": bot})[0] == {
        "bot": TokenCredential(variable="T", prefix="Bot ")
    }
    assert sent(text, token_variable="T", token_prefix="Bot ")[0]["bot"].prefix == "Bot "
    digest = sent(secured({"digest": []}), credentials={"digest": {**bot, "prefix": "Token "}})
    assert digest[0]["digest"].prefix == "Token "


@pytest.mark.parametrize(
    ("text", "credentials", "message"),
    [
        (secured({"bearer": []}), {"other": {"variable": "T"}}, "found 'other'"),
        (secured({"basic": []}), {"basic": {}}, "user:password"),
        (secured({"key": []}), {"key": {}}, "expected `variable`"),
        (secured({"oauth": []}), {"oauth": {"client_id_variable": "I"}}, "client_secret_variable"),
        (secured({"digest": []}), {"digest": {"variable": "T"}}, "`prefix`"),
        (secured({"tls": []}), {"tls": {"variable": "T"}}, "mutualTLS"),
        (secured({"key": []}), {"bearer": {"variable": "T"}}, "scheme 'key', found none"),
    ],
)
def test_credentials_that_do_not_fit_are_named(text: str, credentials: dict, message: str) -> None:
    given = {name: GivenCredential(**fields) for name, fields in credentials.items()}
    api = RealApi(base_url="https://h.local", credentials=given)
    with pytest.raises(DataFileError, match=message):
        real_tool_set(text, api, operations=["GET /x"])


def test_an_operation_for_which_the_user_has_no_credential_is_left_out() -> None:
    api = RealApi(base_url="https://h.local", credentials={"key": GivenCredential(variable="K")})
    text = secured({"bearer": []}, {"basic": []})
    found = real_tool_set(text, api)
    assert [tool.name for tool in found.tools] == ["get_y"]
    assert "scheme 'bearer', found none or: expected `credentials` for" in found.left_out[0].why


# Places


def test_a_server_of_an_operation_has_to_be_allowed() -> None:
    servers = [{"url": "https://{region}.up.local/v2", "variables": {"region": {"default": "eu"}}}]
    paths = {
        "/a": {"get": {}},
        "/b": {"get": {"servers": servers}},
        "/c": {"get": {}, "servers": [{"url": "/v3"}]},
    }
    text = document(paths, servers=[{"url": "https://api.local"}])
    found = real_tool_set(text, RealApi(base_url="http://h.local/v1"))
    assert [one.name for one in found.left_out] == ["get_b"]
    assert "allowed_hosts" in found.left_out[0].why
    allowed = RealApi(base_url="http://h.local/v1", allowed_hosts=("eu.up.local",))
    operations = endpoint(real_tool_set(text, allowed)).operations
    assert [one.base_url for one in operations] == ["", "https://eu.up.local/v2", "/v3"]
    simulated_tool_set(text, operations=["GET /b"])


def test_a_base_url_replaces_the_server_that_a_document_names_path_by_path() -> None:
    servers = [{"url": "https://api.local"}]
    paths = {f"/{name}": {"servers": servers, "get": {}} for name in "ab"}
    paths["/c"] = {"servers": [{"url": "https://other.local"}], "get": {}}
    found = real_tool_set(document(paths), RealApi(base_url="http://127.0.0.1:8080"))
    assert [one.base_url for one in endpoint(found).operations] == ["", ""]
    assert [one.name for one in found.left_out] == ["get_c"]


def test_operations_that_are_safe_to_try_are_named() -> None:
    text = document({"/s": {"post": {"operationId": "search"}}, "/d": {"post": {}}})
    for name in ("search", "POST /s"):
        api = RealApi(base_url="http://h.local", trial_operations=(name,))
        assert [one.tried for one in endpoint(real_tool_set(text, api)).operations] == [True, False]
    with pytest.raises(DataFileError, match=r"trial_operations: .* found 'delete'"):
        real_tool_set(text, RealApi(base_url="http://h.local", trial_operations=("delete",)))


def test_what_is_accepted_is_what_the_document_answers() -> None:
    def accepting(*kinds: str) -> str:
        content = {kind: {} for kind in kinds}
        response = {"200": {"description": "ok", "content": content}}
        return only(document({"/x": {"get": {"responses": response}}})).accept

    assert accepting() == accepting("text/plain", "application/json") == "application/json"
    assert accepting("application/vnd.a+json") == "application/vnd.a+json, */*;q=0.1"
    assert accepting("text/csv") == "text/csv, */*;q=0.1"
