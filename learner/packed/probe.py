"""A check of a loaded model: packed episodes get the logprobs that they get alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from envs.errors import ConfigError
from learner.packed.packing import Pack
from learner.packed.policy import PolicyModule

LARGEST = 1e-3
"""Largest difference of a token's logprobs in float32, in nats, that is rounding and no error."""
LARGEST_MEAN = 0.1
"""The same for the mean over tokens in 16 bits, where single tokens may differ by more."""
_LENGTHS = (24, 17)
_SHARED = 8
_SEED = 20_240_501


def check_packing(policy: PolicyModule) -> float:
    """Return the difference between packed and lone logprobs of two random episodes, in nats.

    They begin with the same 8 tokens and are scored in one pass, then in a pass each: 74 tokens in
    all. The difference is the largest one in float32, the mean one in 16 bits, and 0 for a model
    that takes one episode per pass. No global random numbers are used. Raises ConfigError where it
    is more than rounding.
    """
    if not policy.packs:
        return 0.0
    weight = next(policy.policy.get_input_embeddings().parameters())
    generator = torch.Generator().manual_seed(_SEED)
    first, second = (
        torch.randint(0, len(weight), (length,), generator=generator) for length in _LENGTHS
    )
    second[:_SHARED] = first[:_SHARED]
    training = policy.training
    policy.eval()
    with torch.no_grad():
        together_P, _ = policy(_pack([first, second], _SHARED).to(weight.device))
        alone = [policy(_pack([ids], 0).to(weight.device))[0] for ids in (first, second)]
    policy.train(training)
    gaps_P = (together_P - torch.cat(alone)).abs()
    exact = weight.dtype == torch.float32
    found, largest = (
        float(gaps_P.max() if exact else gaps_P.mean()),
        LARGEST if exact else LARGEST_MEAN,
    )
    if not found <= largest:
        raise ConfigError(
            f"expected packed episodes to have the logprobs that they have alone, found a "
            f"difference of {found:.2g} in {type(policy.policy).__name__}: something in this model "
            "mixes episodes; set learner.packing and sft.packing to 'off'"
        )
    return found


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
