"""The Protocol between the trainer and the library that shards the weights and updates them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from learner.packed.packing import Pack
from learner.trainer_setup import TrainerSetup


class Backend(Protocol):
    """One rank of a data-parallel learner. Every rank calls the collective methods together."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Hash of parameter names, shapes and dtypes; a checkpoint loads only where it is equal."""
        ...

    @property
    def packs(self) -> bool:
        """Whether a pass takes several episodes; if not, every pack must hold one."""
        ...

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return differentiable logprobs_P, and entropies_P, of the current weights; collective."""
        ...

    def score(self, pack: Pack, *, reference: bool = False) -> tuple[Tensor, Tensor]:
        """As `forward` without a gradient; `reference` takes the initial weights; collective."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this rank's share of the global loss; collective.

        `last` is true for the last call before `step`. A loss that is not finite makes `step` fail
        on every rank.
        """
        ...

    def step(self, lr_scale: float) -> float:
        """Sum gradients over ranks, clip them and update the weights; collective.

        Returns the gradient's 2-norm before clipping. `lr_scale` multiplies the configured learning
        rates. Raises NonFiniteError on every rank, with unchanged weights, if any gradient is not
        finite.
        """
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's picklable `value`, in rank order, on every rank; collective."""
        ...

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full tensor) of the checkpoint layer by layer, tied ones once; collective.

        Names and shapes are those of the checkpoint's files; parameters of the model may differ.
        A tensor is valid only until the next one is requested. Every rank must exhaust the
        iterator.
        """
        ...

    def pushed_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Like `named_weights`, for a push; with LoRA, only the adapters, with PEFT's names."""
        ...

    def save_state(self, path: Path) -> None:
        """Write weights and optimizer state into the folder `path`; collective."""
        ...

    def load_state(self, path: Path) -> None:
        """Load what `save_state` wrote with the same ZeRO stage and number of ranks; collective."""
        ...

    def close(self) -> None: ...


MakeBackend = Callable[[TrainerSetup], Backend]
"""Starts the backend of one rank. Trainer calls it after its own checks have passed."""
