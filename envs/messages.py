"""Messages of a conversation, as chat templates and policies see them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `content` is plain text, tool calls included as the policy wrote them."""

    role: Role
    content: str


Reply = Callable[[Sequence[Message], int], str]
"""Maps the conversation so far and the episode's seed to the text of the next turn."""
