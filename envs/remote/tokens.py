"""Tokens and keys of endpoints, which users keep in environment variables."""

from collections.abc import Mapping

from envs.errors import ConfigError


def endpoint_token(variable: str, place: str, variables: Mapping[str, str]) -> str:
    """Return the value of `variable` in `variables`; empty if the endpoint names no variable.

    `place` is the endpoint's address, for the error. White space around the token is left out.
    Raises ConfigError if the variable is not set or empty, or as `check_header` does.
    """
    if not variable:
        return ""
    token = variables.get(variable, "").strip()
    if not token:
        raise ConfigError(
            f"expected a token for {place} in the environment variable {variable}, found none: "
            "set it where the workers start"
        )
    return check_header(token, f"the token for {place} in the environment variable {variable}")


def check_header(secret: str, what: str) -> str:
    """Return `secret` if an HTTP header may hold it.

    Raises ConfigError, which says `what` it is and never repeats it: the HTTP client's own error
    would.
    """
    if not secret.isascii():
        raise ConfigError(f"{what} contains a character beyond ASCII: set the variable again")
    if secret and not secret.isprintable():
        raise ConfigError(
            f"{what} contains a line break or another control character: set the variable again, "
            "to one line"
        )
    return secret
