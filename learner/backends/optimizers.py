"""Optimizers over a policy's parameters: AdamW, or Muon on hidden matrices and AdamW elsewhere."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from learner.config import OptimizerSection


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimizer, with the parameter groups and the state of both."""

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self._parts: tuple[Optimizer, ...] = (muon, adamw)
        groups = [group for part in self._parts for group in part.param_groups]
        super().__init__(groups, {})
        for part, groups in zip(
            self._parts, (self.param_groups[:1], self.param_groups[1:]), strict=True
        ):
            part.param_groups = groups
            part.state = self.state

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], Any] | None = None
    ) -> None:
        """Update the parameters of both."""
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and share the new state and groups with both parts."""
        super().load_state_dict(state_dict)
        for part, groups in zip(
            self._parts, (self.param_groups[:1], self.param_groups[1:]), strict=True
        ):
            part.param_groups = groups
            part.state = self.state


def build_optimizer(
    module: nn.Module, embeddings: Iterable[nn.Parameter], config: OptimizerSection
) -> Optimizer:
    """Make the optimizer of `config`; embeddings (input and output) always get AdamW."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    excluded = {id(parameter) for parameter in embeddings}
    matrices = [p for p in parameters if p.ndim == 2 and id(p) not in excluded]
    vectors = [p for p in parameters if p.ndim < 2]
    tables = [p for p in parameters if p.ndim >= 2 and (p.ndim > 2 or id(p) in excluded)]
    if config.optimizer == "adamw":
        return _adamw([*matrices, *tables], vectors, config)
    muon = Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay)
    return MuonAdamW(muon, _adamw(tables, vectors, config))


def _adamw(
    decayed: list[nn.Parameter], plain: list[nn.Parameter], config: OptimizerSection
) -> AdamW:
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )
