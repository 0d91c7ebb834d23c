"""A backend in plain torch: a table of logits per previous token, updated by SGD, one rank."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.errors import NonFiniteError
from learner.packed.packing import Pack
from learner.trainer_setup import TrainerSetup

VOCABULARY = 64


class BigramBackend:
    """Implements learner.backends.backend.Backend without DeepSpeed or a transformer."""

    rank = 0
    world_size = 1
    packs = True
    fingerprint = f"bigram {VOCABULARY}"

    def __init__(self, setup: TrainerSetup) -> None:
        section = setup.sft or setup.learner
        self._lr, self._limit = section.lr, section.max_grad_norm
        generator = torch.Generator().manual_seed(0)
        self._logits_VV = torch.randn(VOCABULARY, VOCABULARY, generator=generator).requires_grad_()
        self._initial_VV = self._logits_VV.detach().clone()

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        return _scores(self._logits_VV, pack)

    @torch.no_grad()
    def score(self, pack: Pack, *, reference: bool = False) -> tuple[Tensor, Tensor]:
        return _scores(self._initial_VV if reference else self._logits_VV, pack)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self, lr_scale: float) -> float:
        gradient, self._logits_VV.grad = self._logits_VV.grad, None
        assert gradient is not None, "backward comes first"
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            raise NonFiniteError("found NaN or infinity: the weights are as before")
        scale = min(1.0, self._limit / norm) if norm else 1.0
        self._logits_VV -= self._lr * lr_scale * scale * gradient
        return norm

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield "logits", self._logits_VV.detach()

    def pushed_weights(self) -> Iterator[tuple[str, Tensor]]:
        return self.named_weights()

    def save_state(self, path: Path) -> None:
        torch.save(self._logits_VV.detach(), path / "logits.pt")

    def load_state(self, path: Path) -> None:
        with torch.no_grad():
            self._logits_VV.copy_(torch.load(path / "logits.pt"))

    def close(self) -> None: ...


def _scores(logits_VV: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
    logits_QV = logits_VV[pack.token_ids_U[pack.predict_Q]] / pack.temperatures_Q[:, None]
    all_QV = torch.log_softmax(logits_QV, dim=-1)
    logprobs_Q = all_QV.gather(1, pack.targets_Q[:, None])[:, 0]
    entropies_Q = -(all_QV.detach().exp() * all_QV.detach()).sum(-1)
    return logprobs_Q.index_select(0, pack.scores_P), entropies_Q[pack.scores_P]
