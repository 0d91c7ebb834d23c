"""One call as an HTTP request: the parts of the URL, headers, cookies and the body."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from pydantic import JsonValue

from envs.endpoints import UNSENT_HEADERS, HttpBody, HttpOperation, WireArgument
from envs.remote.http_styles import (
    cookie_pairs,
    field_pairs,
    header_text,
    is_json_type,
    json_text,
    path_text,
    query_pairs,
    scalar_text,
)
from envs.seeds import stable_hash
from envs.tools import JsonObject


@dataclass(frozen=True, slots=True)
class Signature:
    """What credentials add to a request."""

    headers: Mapping[str, str] = field(default_factory=dict)
    query: tuple[str, ...] = ()
    """Pairs `name=value`, encoded."""
    cookies: tuple[str, ...] = ()


class RequestParts:
    """The arguments of one call, grouped by the part of the request that they go to."""

    def __init__(self, operation: HttpOperation, arguments: JsonObject) -> None:
        """Place the arguments. Raises ValueError if one does not fit into a request."""
        self._operation = operation
        self._query: list[str] = []
        self._headers: dict[str, str] = {}
        self._cookies: list[str] = []
        self._texts: dict[str, str] = {}
        self._fields: list[tuple[WireArgument, JsonValue]] = []
        self._whole: list[JsonValue] = []
        for name, value in {**operation.defaults, **arguments}.items():
            wire = operation.arguments.get(name) or WireArgument(place="field", name=name)
            self._place(wire, value)

    def request(
        self, client: httpx.AsyncClient, base_url: str, signature: Signature
    ) -> httpx.Request:
        """Return the request. Raises ValueError if the arguments do not fit into one."""
        headers = {"accept": self._operation.accept, "accept-encoding": "identity"}
        headers |= self._headers
        content, media_type, files = self._body()
        if media_type:
            headers["content-type"] = media_type
        signed = {name.lower() for name in signature.headers}
        headers = {k: v for k, v in headers.items() if k.lower() not in signed}
        headers |= signature.headers
        try:
            url = self._url(base_url, signature)
            request = client.build_request(
                self._operation.method.upper(), url, headers=headers, content=content, files=files
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"an argument does not fit into an HTTP request: {error}") from error
        _add_cookies(request, [*self._cookies, *signature.cookies])
        return request

    def _place(self, wire: WireArgument, value: JsonValue) -> None:
        match wire.place:
            case "path":
                if value is None:
                    raise ValueError(f"argument {wire.name!r}: expected a value, found null")
                self._texts[wire.name] = path_text(wire, value)
            case "query":
                self._query += query_pairs(wire, value)
            case "header":
                if value is not None and wire.name.lower() not in UNSENT_HEADERS:
                    self._headers[wire.name] = header_text(wire, value)
            case "cookie":
                self._cookies += cookie_pairs(wire, value)
            case "body":
                self._whole.append(value)
            case "field":
                self._fields.append((wire, value))

    def _url(self, base_url: str, signature: Signature) -> httpx.URL:
        own = self._operation.base_url
        base = str(httpx.URL(base_url).join(own)) if own else base_url
        path = "/".join(self._segment(part) for part in self._operation.path.split("/"))
        query = "&".join([*self._query, *signature.query])
        joint = "&" if "?" in path else "?"
        return httpx.URL(base.rstrip("/") + path + (joint + query if query else ""))

    def _segment(self, template: str) -> str:
        """Return one part of the path with its parameters filled in."""
        text = template
        for name, value in self._texts.items():
            text = text.replace(f"{{{name}}}", value)
        if "{" in text:  # values have no brace: they are encoded
            missing = text.partition("{")[2].partition("}")[0]
            raise ValueError(f"missing required argument {missing!r}")
        if text != template and text in ("", ".", ".."):
            raise ValueError(f"expected one part of a path for {template!r}, found {text!r}")
        return text

    def _body(self) -> tuple[bytes | None, str, list | None]:
        """Return the body's bytes and media type, or its parts where it is multipart."""
        body = self._operation.body
        if body is None:
            if not self._fields and not self._whole:
                return None, "", None
            body = HttpBody(media_type="application/json")
        whole = self._whole[0] if self._whole else None
        if body.form in ("urlencoded", "multipart") and isinstance(whole, dict):
            # A form whose fields the document does not name.
            fields = [(WireArgument(place="field", name=key), item) for key, item in whole.items()]
        elif self._whole or body.form == "text":
            return self._whole_body(body)
        else:
            fields = self._fields
        if not fields and not body.required:
            return None, "", None
        match body.form:
            case "urlencoded":
                pairs = [pair for wire, value in fields for pair in field_pairs(wire, value)]
                return "&".join(pairs).encode(), body.media_type, None
            case "multipart":
                parts = [part for wire, value in fields for part in _multipart(wire, value)]
                # The boundary is derived from what it separates, so that a repeated run sends the
                # same bytes.
                boundary = f"part-{stable_hash(json.dumps(parts)):016x}"
                return None, f"{body.media_type}; boundary={boundary}", parts
            case _:
                values = {wire.name: value for wire, value in fields}
                return json_text(values).encode(), body.media_type, None

    def _whole_body(self, body: HttpBody) -> tuple[bytes | None, str, None]:
        if not self._whole:
            return (b"", body.media_type, None) if body.required else (None, "", None)
        value = self._whole[0]
        text = scalar_text(value) if body.form == "text" else json_text(value)
        return text.encode(), body.media_type, None


def _multipart(wire: WireArgument, value: JsonValue) -> list:
    """Return the parts of one field: `(name, (no file name, text, media type))`."""
    if wire.media_type and is_json_type(wire.media_type):
        return [(wire.name, (None, json_text(value), wire.media_type))]
    parts = []
    for item in value if isinstance(value, list) else [value]:
        if item is not None:
            kind = "application/json" if isinstance(item, dict | list) else "text/plain"
            text = scalar_text(item)
            parts.append((wire.name, (None, text, wire.media_type or kind)))
    return parts


def _add_cookies(request: httpx.Request, pairs: list[str]) -> None:
    """Add cookies; one that the API has set before gives way to one of the same name."""
    if not pairs:
        return
    names = {pair.partition("=")[0] for pair in pairs}
    kept = [
        pair
        for pair in request.headers.get("cookie", "").split("; ")
        if pair and pair.partition("=")[0] not in names
    ]
    request.headers["cookie"] = "; ".join([*kept, *pairs])
