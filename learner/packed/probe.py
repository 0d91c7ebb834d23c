"""A check of a loaded model: its logprobs in a pack, alone, and in plain transformers are equal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.errors import ConfigError, LearnerError
from learner.packed.attention_kind import PLAIN
from learner.packed.packing import Pack
from learner.packed.policy import PolicyModule
from learner.pretrained.architecture import one_line

LARGEST = 1e-3
"""Largest difference of a token's logprobs in float32, in nats, that is rounding and no error."""
LARGEST_MEAN = 0.1
"""The same for the mean over tokens in 16 bits, where single tokens may differ by more."""
_COMPLAINTS = (
    "expected the learner's logprobs to be those of transformers, found a difference of {gap} in "
    "{name}: this model does more to its logits or its attention than the learner computes; choose "
    "another model",
    "expected packed episodes to have the logprobs that they have alone, found a difference of "
    "{gap} in {name}: something in this model mixes episodes; set learner.packing and sft.packing "
    "to 'off'",
    "expected the same logprobs in training as in sampling, found a difference of {gap} in {name}: "
    "this model adds noise in training that its config.json does not name; choose another model",
)
"""What is wrong if plain transformers, a pack, or training differ from a pass per episode."""
_FAULTS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a model raises that was not written for such passes."""
_LENGTHS = (24, 17)
_SHARED = 8
_SEED = 20_240_501


def check_logprobs(policy: PolicyModule) -> float:
    """Return how much the logprobs of two random episodes differ by the way they are computed.

    They begin with the same 8 tokens and are scored by plain transformers, by `policy` in a pass
    each, in one pass where it packs, and as in training: at most 156 tokens in all. The difference,
    in nats, is the largest one in float32 and the mean one in 16 bits. No global random numbers are
    used. Raises ConfigError where it is more than rounding, and for a model that fails.
    """
    name = type(policy.policy).__name__
    training = policy.training
    try:
        gaps = _gaps(policy)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except LearnerError as error:
        raise ConfigError(f"{name}: {error}") from error
    except _FAULTS as error:
        raise ConfigError(
            f"expected a model that the learner can score, found {type(error).__name__} in {name}: "
            f"{one_line(error)}: set learner.packing and sft.packing to 'off', or choose another "
            "model"
        ) from error
    finally:
        policy.train(training)
    weight = next(policy.policy.get_input_embeddings().parameters())
    for gap, complaint in zip(gaps, _COMPLAINTS, strict=True):
        if not gap <= _largest(weight):
            raise ConfigError(complaint.format(gap=f"{gap:.2g}", name=name))
    return max(gaps)


def _gaps(policy: PolicyModule) -> list[float]:
    """Return how far plain transformers, a pack, and training are from a pass per episode."""
    weight = next(policy.policy.get_input_embeddings().parameters())
    generator = torch.Generator().manual_seed(_SEED)
    first, second = (
        torch.randint(0, len(weight), (length,), generator=generator) for length in _LENGTHS
    )
    second[:_SHARED] = first[:_SHARED]
    with torch.no_grad():
        policy.eval()
        lone_P = _alone(policy, (first, second), weight)
        plain_P = _plain(policy, [ids.to(weight.device) for ids in (first, second)])
        together_P = lone_P
        if policy.packs:
            together_P, _ = policy(_pack([first, second], _SHARED).to(weight.device))
        policy.train()
        trained_P = _alone(policy, (first, second), weight)
    return [_gap(other_P, lone_P, weight) for other_P in (plain_P, together_P, trained_P)]


def _alone(policy: PolicyModule, episodes: Sequence[Tensor], weight: Tensor) -> Tensor:
    return torch.cat([policy(_pack([ids], 0).to(weight.device))[0] for ids in episodes])


def _largest(weight: Tensor) -> float:
    return LARGEST if weight.dtype == torch.float32 else LARGEST_MEAN


def _gap(found_P: Tensor, expected_P: Tensor, weight: Tensor) -> float:
    gaps_P = (found_P - expected_P).abs()
    return float(gaps_P.max() if weight.dtype == torch.float32 else gaps_P.mean())


def _plain(policy: PolicyModule, episodes: Sequence[Tensor]) -> Tensor:
    """Return the logprobs that the model's own forward pass gives, with transformers' attention."""
    model: Any = policy.policy
    model.set_attn_implementation(PLAIN)
    if model.get_decoder().config._attn_implementation != PLAIN:
        raise ConfigError(
            f"expected a model whose attention transformers can replace, found "
            f"{type(model).__name__}, where it cannot: what the learner computes could not be "
            "checked; choose another model"
        )
    try:
        scores = []
        for ids in episodes:
            all_TV = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            scores.append(all_TV.log_softmax(-1).gather(1, ids[1:, None])[:, 0])
        return torch.cat(scores)
    finally:
        model.set_attn_implementation(policy.attention)


def _pack(episodes: Sequence[Tensor], shared: int) -> Pack:
    """Pack episodes that begin with the same `shared` tokens; every token but the first counts."""
    paths, size = [], 0
    for ids in episodes:
        new = len(ids) - (shared if paths else 0)
        own = torch.arange(size, size + new)
        paths.append(torch.cat([paths[0][:shared], own]) if paths else own)
        size += new
    owned = [len(ids) - (shared if number else 0) for number, ids in enumerate(episodes)]
    token_ids_U = torch.cat(
        [ids[len(ids) - own :] for ids, own in zip(episodes, owned, strict=True)]
    )
    predict_P, targets_P = torch.cat([p[:-1] for p in paths]), torch.cat([p[1:] for p in paths])
    counts = torch.tensor([len(path) - 1 for path in paths])
    return Pack(
        token_ids_U=token_ids_U,
        positions_U=torch.cat(
            [
                torch.arange(len(ids) - own, len(ids))
                for ids, own in zip(episodes, owned, strict=True)
            ]
        ),
        paths_T=torch.cat(paths),
        lengths_S=tuple(len(path) for path in paths),
        owned_S=tuple(owned),
        predict_Q=predict_P,
        targets_Q=token_ids_U[targets_P],
        temperatures_Q=torch.ones(len(targets_P)),
        scores_P=torch.arange(len(targets_P)),
        segments_P=torch.repeat_interleave(torch.arange(len(paths)), counts),
        sources_P=np.arange(len(targets_P)),
    )
