"""The engine Protocol: takes token ids, returns token ids with logprobs and policy versions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from envs.errors import EpisodeError
from envs.messages import Message
from rollout.weights.manifest import WeightManifest

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one turn; temperature 0 is greedy.

    `max_tokens` counts the end-of-turn token; with `seed` None the engine uses its own random
    numbers.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The context that a turn continues.

    `token_ids` is the exact context; `messages` is the same conversation for engines that read
    text.
    """

    request_id: str
    token_ids: Sequence[int]
    messages: Sequence[Message]
    seed: int = 0
    """The episode's seed, the same for all its turns."""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """From token index `start`, tokens were sampled with policy version `version`."""

    start: int
    version: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled turn, including its end-of-turn token.

    `logprobs` has one value per token, of the distribution that was sampled from.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    spans: tuple[VersionSpan, ...]
    """`start` counts from the completion's first token; the first span starts at 0."""
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
    """Continues prompts with a policy whose weights have a version."""

    @property
    def version(self) -> int:
        """Version of the weights that the next token is sampled with."""
        ...

    async def start(self) -> None:
        """Prepare the engine for sampling. Raises EngineError."""
        ...

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """Continue `prompt`. Raises EngineError if the engine can no longer sample."""
        ...

    async def load_weights(self, manifest: WeightManifest) -> None:
        """Load the weights of `manifest`; running requests continue with them.

        Raises WeightSyncError.
        """
        ...

    async def pause(self) -> None:
        """Pause between two scheduler steps; requests in progress are kept."""
        ...

    async def resume(self) -> None:
        """Continue sampling after `pause`."""
        ...

    async def close(self) -> None:
        """Release the engine's resources."""
        ...


@runtime_checkable
class WatchedEngine(Engine, Protocol):
    """An engine whose work other processes do, which may die or freeze without a word."""

    @property
    def process_ids(self) -> Sequence[int]:
        """Processes on this machine that the engine has started; empty before `start`."""
        ...

    async def ping(self) -> None:
        """Return once the engine answers, between two of its steps. Raises EngineError."""
        ...
