"""An episode in progress: token ids, phases and logprobs that are only ever appended to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat

from envs.messages import Message
from rollout.engine import Completion, VersionSpan
from rollout.episode import CallRecord, Phase, Turn

_CONTEXT = 64
"""Tokens before a completion that its reader may ask for."""


class Trajectory:
    """Append-only record of one episode's tokens, turns and messages."""

    def __init__(self) -> None:
        self.token_ids_T: list[int] = []
        self.phases_T: list[int] = []
        self.logprobs_T: list[float] = []
        self.spans: list[VersionSpan] = []
        self.turns: list[Turn] = []
        self.messages: list[Message] = []
        self.queue_s = 0.0
        self.generate_s = 0.0
        self.tool_s = 0.0

    def append_world(
        self, token_ids: Sequence[int], phase: Phase, messages: Sequence[Message]
    ) -> None:
        """Append tokens that the policy did not sample: the prompt or an observation."""
        self.token_ids_T.extend(token_ids)
        self.phases_T.extend(repeat(int(phase), len(token_ids)))
        self.logprobs_T.extend(repeat(math.nan, len(token_ids)))
        self.messages.extend(messages)

    def append_completion(self, completion: Completion, phase: Phase, text: str) -> None:
        """Append a sampled completion; `settle_turn` may change `phase` after parsing."""
        start = len(self.token_ids_T)
        for span in completion.spans:
            if not self.spans or self.spans[-1].version != span.version:
                self.spans.append(VersionSpan(start + span.start, span.version))
        self.token_ids_T.extend(completion.token_ids)
        self.phases_T.extend(repeat(int(phase), len(completion.token_ids)))
        self.logprobs_T.extend(completion.logprobs)
        self.messages.append(Message("assistant", text))
        self.queue_s += completion.queue_s
        end = len(self.token_ids_T)
        self.turns.append(
            Turn(
                phase=phase,
                start=start,
                end=end,
                text=text,
                finish_reason=completion.finish_reason,
                policy_error="",
            )
        )

    def settle_turn(
        self, phase: Phase, *, policy_error: str = "", calls: Sequence[CallRecord] = ()
    ) -> None:
        """Set the final phase, policy error and calls of the last completion."""
        turn = self.turns[-1]
        self.phases_T[turn.start : turn.end] = repeat(int(phase), turn.end - turn.start)
        self.turns[-1] = replace(turn, phase=phase, policy_error=policy_error, calls=tuple(calls))

    def before_turn(self) -> Sequence[int]:
        """Return the last tokens before the last completion."""
        start = self.turns[-1].start
        return self.token_ids_T[max(0, start - _CONTEXT) : start]

    def sampled_in(self, phases: Sequence[Phase]) -> int:
        """Number of tokens sampled in `phases`."""
        return sum(turn.end - turn.start for turn in self.turns if turn.phase in phases)


@dataclass(frozen=True, slots=True)
class VisibleFrom:
    """First token and message visible to the policy."""

    token: int = 0
    message: int = 0

    def visible(self, trajectory: Trajectory) -> tuple[Sequence[int], Sequence[Message]]:
        """Return the visible tokens and messages."""
        if self.token == 0:
            return trajectory.token_ids_T, trajectory.messages
        return trajectory.token_ids_T[self.token :], trajectory.messages[self.message :]

    def length(self, trajectory: Trajectory) -> int:
        """Number of visible tokens."""
        return len(trajectory.token_ids_T) - self.token
