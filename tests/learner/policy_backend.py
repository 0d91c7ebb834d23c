"""A backend in plain torch around the real policy: one rank, AdamW, no DeepSpeed."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.errors import NonFiniteError
from learner.backends.optimizers import build_optimizer
from learner.packed.packing import Pack
from learner.packed.policy import load_policy
from learner.packed.probe import check_logprobs
from learner.pretrained.names import checkpoint_names
from learner.trainer_setup import TrainerSetup

CPU = torch.device("cpu")


class PolicyBackend:
    """Implements learner.backends.backend.Backend for a model of any family."""

    rank = 0
    world_size = 1
    fingerprint = "policy"

    def __init__(self, setup: TrainerSetup) -> None:
        config = setup.sft or setup.learner
        self.module = load_policy(
            setup.model_path, torch.float32, CPU, packing=config.packing == "auto"
        )
        self.difference = check_logprobs(self.module)
        self.packs = self.module.packs
        self._optimizer = build_optimizer(self.module, [], config)
        self._limit = config.max_grad_norm

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        self.module.train()
        return self.module(pack)

    @torch.no_grad()
    def score(self, pack: Pack, *, reference: bool = False) -> tuple[Tensor, Tensor]:
        self.module.eval()
        return self.module(pack)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, lr_scale: float) -> float:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._limit))
        if not math.isfinite(norm):
            raise NonFiniteError("found NaN or infinity: the weights are as before")
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        policy = self.module.policy
        named = [(name, tensor.detach()) for name, tensor in policy.named_parameters()]
        yield from checkpoint_names(policy, named)

    def pushed_weights(self) -> Iterator[tuple[str, Tensor]]:
        return self.named_weights()

    def save_state(self, path: Path) -> None:
        raise NotImplementedError

    def load_state(self, path: Path) -> None:
        raise NotImplementedError

    def close(self) -> None: ...
