"""Tokens of endpoints, which users keep in environment variables."""

from collections.abc import Mapping

from envs.errors import ConfigError


def endpoint_token(variable: str, place: str, variables: Mapping[str, str]) -> str:
    """Return the value of `variable` in `variables`; empty if the endpoint names no variable.

    `place` is the endpoint's address, for the error. Raises ConfigError if the variable is not set
    or empty.
    """
    if not variable:
        return ""
    token = variables.get(variable, "")
    if not token:
        raise ConfigError(
            f"expected a token for {place} in the environment variable {variable}, found none: "
            "set it where the workers start"
        )
    return token
