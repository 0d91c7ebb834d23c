"""Observations that fit: long texts are cut, and say so."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from envs.messages import Message

LONG_TEXT = 4_000
"""Length in characters from which a text is tokenised in a thread, off the event loop.

For shorter texts the thread costs more than it saves.
"""
Tokenise = Callable[[Sequence[Message]], list[int]]

_OPENING, _CLOSING = "<tool_response>\n", "\n</tool_response>"
"""Tags that the wording itself puts around a text; they stay when it is cut."""
Result = TypeVar("Result")


async def off_the_loop(messages: Sequence[Message], work: Callable[[], Result]) -> Result:
    """Return what `work` makes of `messages`; in a thread if they are long."""
    is_long = sum(len(message.content) for message in messages) >= LONG_TEXT
    return await asyncio.to_thread(work) if is_long else work()


@dataclass(frozen=True, slots=True)
class Observation:
    """Messages as the policy sees them, their token ids, and how many characters were cut."""

    messages: tuple[Message, ...]
    token_ids: list[int]
    cut_characters: int = 0


@dataclass(slots=True, kw_only=True)
class Cutter:
    """Cuts the observations of one episode to fit, and counts what it cut."""

    turn_tokens: int
    """Longest turn of the policy."""
    limit: int = 0
    """Bound of one observation that the configuration sets, in tokens; 0 is none."""
    observations: int = 0
    """Observations that were cut."""
    characters: int = 0
    """Characters that were left out of them."""

    async def fit(
        self,
        messages: Sequence[Message],
        tokenise: Tokenise,
        room: int,
        turns: int,
        *,
        before: int = 0,
    ) -> Observation | None:
        """Return `messages` so that `turns` turns have room after them, or None if they cannot fit.

        If the `room` that is left, in tokens, is so short that this would leave the observation
        less than half of it, it gets half. `tokenise` may return `before` other tokens as well,
        which `room` does not include. Long texts are tokenised in a thread.
        """
        allowed = max(room - turns * self.turn_tokens, room // 2)
        allowed = min(allowed, self.limit) if self.limit else allowed
        fit = partial(fitted, messages, tokenise, before + allowed, before + room)
        seen = await off_the_loop(messages, fit)
        if seen is not None:
            self.observations += seen.cut_characters > 0
            self.characters += seen.cut_characters
        return seen

    @property
    def counts(self) -> dict[str, int]:
        """What an episode records; nothing where nothing was cut."""
        counts = {"cut_observations": self.observations, "cut_characters": self.characters}
        return counts if self.observations else {}


def fitted(
    messages: Sequence[Message],
    tokenise: Tokenise,
    allowed: int,
    room: int,
) -> Observation | None:
    """Return `messages` as at most `allowed` tokens, the longest texts cut first and equally.

    The text is cut and then tokenised, so roles and ends of turns stay complete. What cannot be cut
    to `allowed` may have up to `room` tokens; None if it has more. The result depends on the
    arguments alone.
    """
    ids = tokenise(messages)
    if len(ids) <= allowed:
        return Observation(tuple(messages), ids)
    best = _cut(messages, 0, tokenise)
    if len(best.token_ids) > allowed:
        return best if len(best.token_ids) <= room else None
    low, high = 0, max(len(message.content) for message in messages)
    while high - low > 1:
        middle = (low + high) // 2
        tried = _cut(messages, middle, tokenise)
        if len(tried.token_ids) <= allowed:
            low, best = middle, tried
        else:
            high = middle
    return best


def _cut(messages: Sequence[Message], characters: int, tokenise: Tokenise) -> Observation:
    """Return `messages` with at most `characters` characters of each text."""
    pairs = [_shortened(message, characters) for message in messages]
    kept = tuple(message for message, _ in pairs)
    return Observation(kept, tokenise(kept), sum(cut for _, cut in pairs))


def _shortened(message: Message, characters: int) -> tuple[Message, int]:
    """Return the message with the beginning of its text, and how many characters were cut."""
    opening = _OPENING if message.content.startswith(_OPENING) else ""
    closing = _CLOSING if message.content.endswith(_CLOSING) else ""
    text = message.content.removeprefix(opening).removesuffix(closing)
    cut = len(text) - characters
    said = f"{text[:characters]}\n[cut: {cut} of {len(text)} characters left out]"
    if cut <= 0 or len(said) >= len(text):
        return message, 0
    end = len(opening) + characters
    spans = tuple((start, min(stop, end)) for start, stop in message.world if start < end)
    return replace(message, content=opening + said + closing, world=spans), cut
