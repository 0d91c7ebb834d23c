"""Which credentials an operation sends: `security` of the document, and what the user has.

`security` lists alternatives, and each names the schemes that are needed together. The first
alternative is taken for which the user has every credential.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import JsonValue

from envs.endpoints import BasicCredential, ClientCredential, Credential, TokenCredential
from envs.errors import DataFileError
from envs.sources.openapi.document import OpenApiDocument
from envs.sources.openapi.options import GivenCredential, RealApi
from envs.tools import JsonObject


@dataclass(frozen=True, slots=True)
class Needed:
    """Credentials that one operation sends, by name, and whether the API requires any."""

    credentials: Mapping[str, Credential]
    required: bool


class Security:
    """The security schemes of a document, and the user's credentials for them."""

    def __init__(self, document: OpenApiDocument, api: RealApi | None) -> None:
        """Read the schemes. Raises DataFileError for a credential that fits no scheme."""
        self._document = document
        self._api = api
        self._schemes = _schemes(document)
        for name in api.credentials if api else ():
            if name not in self._schemes:
                raise DataFileError(
                    f"credentials: expected a security scheme of the document "
                    f"({', '.join(self._schemes) or 'it has none'}), found {name!r}"
                )

    @property
    def secret_names(self) -> frozenset[tuple[str, str]]:
        """Name and place of every API key; the policy must not supply these parameters."""
        return frozenset(
            (str(scheme.get("name")), str(scheme.get("in")))
            for scheme in self._schemes.values()
            if scheme.get("type") == "apiKey"
        )

    def of(self, operation: JsonObject) -> Needed:
        """Return what `operation` sends.

        Raises DataFileError if it needs a credential, and the user has others only.
        """
        alternatives = self._alternatives(operation)
        required = bool(alternatives) and all(alternatives)
        api = self._api
        if api is None or not (api.credentials or api.token_variable):
            return Needed({}, required)
        reasons: list[str] = []
        for alternative in alternatives:
            if not alternative:
                continue
            try:
                return Needed(self._all_of(alternative, api), required)
            except DataFileError as reason:
                reasons.append(str(reason))
        if required:
            raise DataFileError(" or: ".join(dict.fromkeys(reasons)))
        return Needed({}, required)

    def _alternatives(self, operation: JsonObject) -> list[JsonObject]:
        """Return the alternatives of an operation; none if it needs no credentials.

        A document that never says `security` says nothing by it: then any of its schemes will do.
        """
        given = operation.get("security", self._document.root.get("security"))
        if isinstance(given, list):
            return [entry for entry in given if isinstance(entry, dict)]
        if self._says_nothing:
            schemes: list[JsonObject] = [{name: []} for name in self._schemes]
            return [*schemes, {}] if schemes else [{"": []}, {}]
        return []

    @cached_property
    def _says_nothing(self) -> bool:
        for item in self._document.section("paths").values():
            parts = item.values() if isinstance(item, dict) else ()
            if any(isinstance(part, dict) and "security" in part for part in parts):
                return False
        return True

    def _all_of(self, alternative: JsonObject, api: RealApi) -> dict[str, Credential]:
        if not api.credentials and len(alternative) > 1:
            raise DataFileError(
                f"expected `credentials` for each of {', '.join(alternative)}, found one "
                "`token_variable`"
            )
        found: dict[str, Credential] = {}
        for name, scopes in alternative.items():
            credential = self._credential(name, scopes, api)
            is_client = isinstance(credential, ClientCredential)
            key = f"{name} ({' '.join(credential.scopes)})" if is_client else name
            found[key or "token"] = credential
        return found

    def _credential(self, name: str, scopes: JsonValue, api: RealApi) -> Credential:
        scheme = self._schemes.get(name, {"type": "http", "scheme": "bearer"})
        if name in api.credentials:
            return _credential(self._document, name, scheme, api.credentials[name], scopes)
        if api.token_variable:
            given = GivenCredential(variable=api.token_variable, prefix=api.token_prefix)
            return _credential(self._document, name, scheme, given, scopes)
        raise DataFileError(f"expected `credentials` for the security scheme {name!r}, found none")


def _schemes(document: OpenApiDocument) -> dict[str, JsonObject]:
    found: dict[str, JsonObject] = {}
    for name, node in document.section("components", "securitySchemes").items():
        try:
            found[name] = document.resolved(node)
        except DataFileError:
            found[name] = {}
    return found


def _credential(
    document: OpenApiDocument,
    name: str,
    scheme: JsonObject,
    given: GivenCredential,
    scopes: JsonValue,
) -> Credential:
    kind = scheme.get("type")
    if kind in ("oauth2", "openIdConnect") and given.client_id_variable:
        return _client(document, name, scheme, given, scopes)
    if kind == "http" and str(scheme.get("scheme")).lower() == "basic" and given.prefix is None:
        return _basic(name, given)
    if not given.variable:
        raise DataFileError(
            f"credentials.{name}: expected `variable`, the environment variable of its token or "
            "key, found none"
        )
    if kind == "apiKey":
        place = scheme.get("in")
        if place not in ("header", "query", "cookie") or not isinstance(scheme.get("name"), str):
            raise DataFileError(f"security scheme {name!r}: expected an API key with a place")
        return TokenCredential.model_validate(
            {
                "variable": given.variable,
                "place": place,
                "name": scheme["name"],
                "prefix": given.prefix or "",
            }
        )
    if kind in ("oauth2", "openIdConnect") or given.prefix is not None:
        return TokenCredential(variable=given.variable, prefix=_or(given.prefix, "Bearer "))
    if kind == "http" and str(scheme.get("scheme")).lower() == "bearer":
        return TokenCredential(variable=given.variable)
    raise DataFileError(
        f"security scheme {name!r}: expected an API key, basic, bearer or OAuth 2, found "
        f"{scheme.get('scheme') or kind}: for a token in the header Authorization, set the "
        "`prefix` that stands before it"
    )


def _or(given: str | None, default: str) -> str:
    return default if given is None else given


def _basic(name: str, given: GivenCredential) -> BasicCredential:
    if bool(given.variable) == bool(given.user_variable and given.password_variable):
        raise DataFileError(
            f"credentials.{name}: expected `variable` with user:password, or `user_variable` and "
            "`password_variable`, found neither or both"
        )
    return BasicCredential(
        variable=given.variable,
        user_variable=given.user_variable,
        password_variable=given.password_variable,
    )


def _client(
    document: OpenApiDocument,
    name: str,
    scheme: JsonObject,
    given: GivenCredential,
    scopes: JsonValue,
) -> ClientCredential:
    flows = scheme.get("flows")
    flow = flows.get("clientCredentials") if isinstance(flows, dict) else None
    node = document.resolved(flow) if isinstance(flow, dict) else {}
    url = given.token_url or node.get("tokenUrl")
    if not isinstance(url, str) or not url or not given.client_secret_variable:
        raise DataFileError(
            f"credentials.{name}: expected `client_secret_variable`, and a token URL in the "
            "document or as `token_url`, found no such pair"
        )
    named = scopes if isinstance(scopes, list) else []
    wanted = given.scopes if given.scopes is not None else tuple(map(str, named))
    return ClientCredential(
        id_variable=given.client_id_variable,
        secret_variable=given.client_secret_variable,
        token_url=url,
        scopes=wanted,
        in_body=given.client_in_body,
    )
