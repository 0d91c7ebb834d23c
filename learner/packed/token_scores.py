"""Logprob and entropy of one token per row of hidden states, without copies of the logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from envs.errors import LearnerError

_CACHED = 2**18  # logits processed at a time on a CPU, to stay in its cache: 1 MiB in float32


class TokenScores(torch.autograd.Function):
    """`apply(hidden_QH, weight_VH, targets_Q, temperatures_Q, limit)`: logprobs_Q, entropies_Q.

    Up to `limit` logits are kept for the backward pass, which overwrites them with their gradient.
    More are computed twice, in chunks of `limit`. Entropies have no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_QH: Tensor,
        weight_VH: Tensor,
        targets_Q: Tensor,
        temperatures_Q: Tensor,
        limit: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs_Q = temperatures_Q.new_empty(len(hidden_QH))
        entropies_Q, normalisers_Q = torch.empty_like(logprobs_Q), torch.empty_like(logprobs_Q)
        kept: list[Tensor] = []
        chunks = _slices(len(hidden_QH), limit, len(weight_VH))
        for chunk in chunks:
            logits_CV = hidden_QH[chunk] @ weight_VH.T
            if len(chunks) == 1 and any(ctx.needs_input_grad):
                kept = [logits_CV]
            offset = chunk.start
            for part in _slices(len(logits_CV), _cached(logits_CV), len(weight_VH)):
                rows = slice(offset + part.start, offset + part.stop)
                logprobs_Q[rows], entropies_Q[rows], normalisers_Q[rows] = _statistics(
                    logits_CV[part], targets_Q[rows], temperatures_Q[rows]
                )
        ctx.save_for_backward(hidden_QH, weight_VH, targets_Q, temperatures_Q, normalisers_Q)
        ctx.kept, ctx.chunks, ctx.spent = kept, chunks, False
        ctx.mark_non_differentiable(entropies_Q)
        return logprobs_Q, entropies_Q

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradient_Q = grad_outputs[0]
        if ctx.spent:
            raise LearnerError("expected one backward pass per forward pass, found a second")
        ctx.spent = True
        hidden_QH, weight_VH, targets_Q, temperatures_Q, normalisers_Q = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden_QH)
        of_weight = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        for chunk in ctx.chunks:
            logits_CV = ctx.kept.pop() if ctx.kept else hidden_QH[chunk] @ weight_VH.T
            offset = chunk.start
            for part in _slices(len(logits_CV), _cached(logits_CV), len(weight_VH)):
                rows = slice(offset + part.start, offset + part.stop)
                _to_gradient(
                    logits_CV[part],
                    targets_Q[rows],
                    temperatures_Q[rows],
                    normalisers_Q[rows],
                    gradient_Q[rows],
                )
            torch.mm(logits_CV, weight_VH, out=of_hidden[chunk])
            if of_weight is not None:
                of_weight.addmm_(logits_CV.T, hidden_QH[chunk])
        return of_hidden, of_weight, None, None, None


def _statistics(
    logits_CV: Tensor, targets_C: Tensor, temperatures_C: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logprobs, entropies, and the logs of the sums of exponentials."""
    scaled_CV = logits_CV.float() / temperatures_C[:, None]
    largest_C = scaled_CV.amax(-1)
    scaled_CV -= largest_C[:, None]
    chosen_C = scaled_CV.gather(1, targets_C[:, None])[:, 0]
    weights_CV = scaled_CV.exp()
    total_C = weights_CV.sum(-1)
    log_total_C = total_C.log()
    entropies_C = log_total_C - weights_CV.mul_(scaled_CV).sum(-1) / total_C
    return chosen_C - log_total_C, entropies_C, largest_C + log_total_C


def _to_gradient(
    logits_CV: Tensor,
    targets_C: Tensor,
    temperatures_C: Tensor,
    normalisers_C: Tensor,
    gradient_C: Tensor,
) -> None:
    """Overwrite logits with the gradient with respect to them."""
    factor_C = gradient_C / temperatures_C
    scores_CV = logits_CV.float().div_(temperatures_C[:, None])
    scores_CV.sub_(normalisers_C[:, None]).exp_().mul_(-factor_C[:, None])
    scores_CV.scatter_add_(1, targets_C[:, None], factor_C[:, None])
    if scores_CV.data_ptr() != logits_CV.data_ptr():
        logits_CV.copy_(scores_CV)


def _cached(logits_CV: Tensor) -> int:
    return _CACHED if logits_CV.device.type == "cpu" else logits_CV.numel()


def _slices(rows: int, limit: int, width: int) -> list[slice]:
    """Cut rows into runs of at most `limit` elements, of one row at least."""
    step = max(1, limit // width)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
