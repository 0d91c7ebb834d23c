"""Messages of a conversation, as chat templates and policies see them."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `content` is plain text, tool calls included as the policy wrote them."""

    role: Role
    content: str
