"""The engine Protocol: token ids in, token ids out, with logprobs and policy versions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from envs.errors import EpisodeError
from envs.messages import Message
from rollout.weights.manifest import WeightManifest

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample one turn. With `seed` None the engine chooses one; temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a turn continues, as tokens; `messages` is the same for engines that read text."""

    request_id: str
    token_ids: Sequence[int]
    messages: Sequence[Message]
    seed: int = 0
    """The episode's seed, the same for all its turns."""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens from index `start` on were sampled with policy `version`."""

    start: int
    version: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled turn, its end-of-turn token included; `logprobs` are of the distribution sampled
    from.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    spans: tuple[VersionSpan, ...]
    """Starts count from the completion's first token; the first span starts at 0."""
    finish_reason: FinishReason
    queue_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise EpisodeError(
                f"expected one logprob per token, found {len(self.token_ids)} tokens and "
                f"{len(self.logprobs)} logprobs"
            )
        if self.token_ids and (not self.spans or self.spans[0].start != 0):
            raise EpisodeError(f"expected version spans that start at token 0, found {self.spans}")


class Engine(Protocol):
    """Continues prompts with a versioned policy."""

    @property
    def version(self) -> int:
        """Policy version that samples the next token."""
        ...

    async def start(self) -> None:
        """Prepare for sampling. Raises EngineError."""
        ...

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """Continue `prompt`. Raises EngineError if the engine must be replaced."""
        ...

    async def load_weights(self, manifest: WeightManifest) -> None:
        """Load the weights of `manifest`; running requests continue with them.

        Raises WeightSyncError.
        """
        ...

    async def pause(self) -> None:
        """Stop between two scheduler steps; requests are kept."""
        ...

    async def resume(self) -> None: ...

    async def close(self) -> None: ...
