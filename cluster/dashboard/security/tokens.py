"""Tokens of the two roles, and the cookies that browsers get for them."""

import hashlib
import hmac
from dataclasses import dataclass

from cluster.dashboard.settings import Role, Tokens

COOKIE = "trialrun_session"
_CONTEXT = b"trialrun dashboard cookie 1"


@dataclass(frozen=True, slots=True)
class Gate:
    """Tells a role by its token or by the cookie made of it.

    The cookie is derived from the token, so nothing is stored: a restart with the same token keeps
    browsers signed in, another token signs all out, and a stolen cookie does not show the token.
    """

    tokens: Tokens

    def role_of_token(self, token: str) -> Role | None:
        """Return the role that `token` opens."""
        roles: tuple[tuple[Role, str], ...] = (
            ("operator", self.tokens.operator),
            ("viewer", self.tokens.viewer),
        )
        return _match(token, roles)

    def role_of_cookie(self, cookie: str) -> Role | None:
        """Return the role that a cookie of `cookie_of` stands for."""
        roles: tuple[tuple[Role, str], ...] = (
            ("operator", self.cookie_of("operator")),
            ("viewer", self.cookie_of("viewer")),
        )
        return _match(cookie, roles)

    def cookie_of(self, role: Role) -> str:
        """Return the value of the cookie for `role`; empty where it has no token."""
        token = self.tokens.operator if role == "operator" else self.tokens.viewer
        if not token:
            return ""
        return hmac.new(token.encode(), _CONTEXT + role.encode(), hashlib.sha256).hexdigest()


def _match(given: str, roles: tuple[tuple[Role, str], ...]) -> Role | None:
    found: Role | None = None
    for role, secret in roles:  # all are compared, so that the time says nothing
        same = hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())
        if same and secret and found is None:
            found = role
    return found
