"""The Protocol between the trainer and the library that shards weights and moves them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from learner.packed.packing import Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Which rank this is and where rank 0 listens; `device` is `cpu` or `cuda`."""

    rank: int
    world_size: int
    master_addr: str
    master_port: int
    device: str = "cpu"


class Backend(Protocol):
    """One rank of a data-parallel learner; every rank calls what is marked collective."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Hash of parameter names, shapes and dtypes; a checkpoint fits only its own."""
        ...

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return differentiable logprobs_P, and entropies_P, of the present weights; collective."""
        ...

    def score(self, pack: Pack, *, reference: bool = False) -> tuple[Tensor, Tensor]:
        """As `forward` without a gradient, of the present or of the initial weights; collective."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this rank's share of a global sum; collective, `last` before a step.

        A loss that is not finite spoils the step on every rank.
        """
        ...

    def step(self, lr_scale: float) -> float:
        """Sum gradients over ranks, clip, move the weights; collective.

        Returns the 2-norm before the clip; `lr_scale` multiplies the configured rates. Raises
        NonFiniteError, on every rank and with weights untouched, when any gradient is not finite.
        """
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's picklable `value`, in rank order, on every rank; collective."""
        ...

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, whole tensor), tied ones once, layer by layer; collective.

        A tensor is only valid until the next is asked for; every rank must exhaust the iterator.
        """
        ...

    def pushed_weights(self) -> Iterator[tuple[str, Tensor]]:
        """As `named_weights`, what engines are sent: with adapters, these alone in PEFT's names."""
        ...

    def save(self, path: Path) -> None:
        """Write weights and optimizer state into the folder `path`; collective."""
        ...

    def load(self, path: Path) -> None:
        """Take back what `save` wrote with as many ranks and the same stage; collective."""
        ...

    def close(self) -> None: ...
