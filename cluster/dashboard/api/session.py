"""Signing in with a token, and out."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from cluster.dashboard.api.context import SettingsDep
from cluster.dashboard.models.runs import Session
from cluster.dashboard.models.shared import Answer
from cluster.dashboard.problems import ApiError
from cluster.dashboard.security.tokens import COOKIE, Gate
from cluster.dashboard.settings import Role, Settings

router = APIRouter(tags=["session"])
_WEEK_S = 7 * 24 * 3600


class TokenGiven(Answer):
    """A token, as it stands behind `#token=` in the printed address."""

    token: str


@router.post("/session", response_model=Session)
def sign_in(
    given: Annotated[TokenGiven, Body()], settings: SettingsDep, response: Response
) -> Session:
    """Exchange a token for a cookie, which scripts cannot read and other sites cannot send."""
    gate = Gate(settings.tokens)
    role = gate.role_of_token(given.token)
    if role is None:
        fix = "open the address that the dashboard printed when it started"
        raise ApiError(401, "no-token", "the token is not this dashboard's", fix)
    response.set_cookie(
        COOKIE,
        gate.cookie_of(role),
        max_age=_WEEK_S,
        httponly=True,
        samesite="strict",
        secure=settings.secure_cookie,
        path="/",
    )
    return _session(role, settings)


@router.get("/session", response_model=Session)
def who(request: Request, settings: SettingsDep) -> Session:
    """Say which role the caller has; 401 without one."""
    role: Role | None = request.scope.get("state", {}).get("role")
    if role is None:
        fix = "open the address that the dashboard printed when it started"
        raise ApiError(401, "no-token", "expected a session, found none", fix)
    return _session(role, settings)


@router.delete("/session", status_code=204)
def sign_out(response: Response) -> None:
    """Forget the cookie."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


def _session(role: Role, settings: Settings) -> Session:
    writes = role == "operator" and not settings.read_only and not settings.demo
    return Session(role=role, version=settings.version, demo=settings.demo, can_write=writes)
