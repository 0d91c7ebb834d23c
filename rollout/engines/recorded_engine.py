"""An engine that repeats the completions of a recorded episode, token by token."""

from typing import cast

from envs.errors import EngineError
from rollout.engine import Completion, FinishReason, Prompt, SamplingParams, VersionSpan
from rollout.episode import Episode, Turn
from rollout.weights.manifest import WeightManifest


class RecordedEngine:
    """Engine for one episode: its n-th completion is the episode's n-th turn, for any prompt.

    Raises EngineError if more turns are requested than were recorded.
    """

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._sampled = 0

    @property
    def version(self) -> int:
        """Policy version of the episode's newest token."""
        return self._episode.spans[-1].version if self._episode.spans else 0

    async def start(self) -> None: ...

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        del prompt, params
        turns = self._episode.turns
        if self._sampled == len(turns):
            raise EngineError(f"expected {len(turns)} turns as recorded, found a further request")
        turn = turns[self._sampled]
        self._sampled += 1
        return Completion(
            self._episode.token_ids_T[turn.start : turn.end],
            self._episode.logprobs_T[turn.start : turn.end],
            self._spans(turn),
            cast(FinishReason, turn.finish_reason),
        )

    async def load_weights(self, manifest: WeightManifest) -> None:
        raise EngineError(
            f"a recorded episode cannot load weights, found version {manifest.version}"
        )

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def close(self) -> None: ...

    def _spans(self, turn: Turn) -> tuple[VersionSpan, ...]:
        """Return the version spans of a turn, with starts counted from its first token."""
        before = [span for span in self._episode.spans if span.start <= turn.start]
        within = [span for span in self._episode.spans if turn.start < span.start < turn.end]
        if not before:
            return ()
        return (
            VersionSpan(0, before[-1].version),
            *(VersionSpan(span.start - turn.start, span.version) for span in within),
        )
