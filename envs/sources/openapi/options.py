"""What a user says about an API beside its document: where it is, its credentials, its fixtures."""

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from envs.endpoints import INFRA_STATUSES


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GivenCredential(_Given):
    """Environment variables for one security scheme of a document.

    A token or key: `variable`. HTTP Basic: `variable` with `user:password`, or the two variables.
    OAuth 2 client credentials: `client_id_variable` and `client_secret_variable`; a token that was
    made elsewhere: `variable`.
    """

    variable: str = ""
    prefix: str | None = None
    """Written before a token, for example `"Bot "`; None for what the scheme says."""
    user_variable: str = ""
    password_variable: str = ""
    client_id_variable: str = ""
    client_secret_variable: str = ""
    token_url: str = ""
    """Replaces that of the document. Its host must be allowed."""
    scopes: tuple[str, ...] | None = None
    """Replace those that the operations name."""
    client_in_body: bool = False
    """Whether id and secret are sent in the form, not as HTTP Basic."""


class RealApi(_Given):
    """A real API behind a document."""

    base_url: str
    allowed_hosts: tuple[str, ...] = ()
    """Other hosts that calls may reach: by redirects, for tokens, and as servers of operations."""
    token_variable: str = ""
    """Environment variable with the one secret that every operation needs, whatever its scheme."""
    token_prefix: str | None = None
    """Written before it; None for what the scheme says."""
    credentials: dict[str, GivenCredential] = {}
    """By the names of the document's security schemes."""
    trial_operations: tuple[str, ...] = ()
    """Operations that trials may call although their method is none that reads."""
    infra_statuses: tuple[StrictInt, ...] = Field(default=INFRA_STATUSES)
    """Statuses that are failures of the infrastructure, not of the call."""
