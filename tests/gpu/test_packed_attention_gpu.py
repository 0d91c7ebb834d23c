"""Packed attention on a GPU: the flash kernels against SDPA per episode, gradients included."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM
from transformers.utils.import_utils import is_flash_attn_2_available

from learner.packed.attention import PACKED_FLASH, PACKED_SDPA, PACKED_VARLEN
from learner.packed.packing import Pack
from learner.packed.policy import PolicyModule

pytestmark = [pytest.mark.real, pytest.mark.gpu]

SHARED = 30


def group() -> Pack:
    """Six episodes of 40 to 290 tokens that share their first 30; what follows is predicted."""
    lengths = tuple(range(40, 340, 50))
    owned = (lengths[0], *(length - SHARED for length in lengths[1:]))
    starts = np.cumsum([0, *owned])
    paths = [torch.arange(lengths[0])]
    for start, own in zip(starts[1:-1].tolist(), owned[1:], strict=True):
        paths.append(torch.cat([torch.arange(SHARED), torch.arange(start, start + own)]))
    targets = torch.cat([path[SHARED:] for path in paths])
    ids = torch.randint(0, 256, (int(starts[-1]),), generator=torch.Generator().manual_seed(0))
    return Pack(
        token_ids_U=ids,
        positions_U=torch.cat(
            [torch.arange(n)[-own:] for n, own in zip(lengths, owned, strict=True)]
        ),
        paths_T=torch.cat(paths),
        lengths_S=lengths,
        owned_S=owned,
        predict_Q=torch.cat([path[SHARED - 1 : -1] for path in paths]),
        targets_Q=ids[targets],
        temperatures_Q=torch.ones(len(targets)),
        scores_P=torch.arange(len(targets)),
        segments_P=torch.zeros(len(targets), dtype=torch.int64),
        sources_P=np.arange(len(targets)),
    ).to(torch.device("cuda"))


@pytest.fixture(scope="module", params=[None, 64], ids=["whole", "window"])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("mistral")
    torch.manual_seed(0)
    config = MistralConfig(
        sliding_window=request.param,
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


def run(folder: Path, implementation: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logprobs, and all gradients in one row."""
    model: Any = MistralForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=implementation
    )
    policy = PolicyModule(model.cuda(), implementation)
    logprobs_P, _ = policy(group())
    logprobs_P.mean().backward()
    gradients = [p.grad.float().flatten() for p in policy.parameters() if p.grad is not None]
    return logprobs_P.detach(), torch.cat(gradients)


@pytest.mark.parametrize("implementation", [PACKED_VARLEN, PACKED_FLASH])
def test_flash_kernels_agree_with_sdpa_per_episode(folder: Path, implementation: str) -> None:
    if implementation == PACKED_FLASH and not is_flash_attn_2_available():
        pytest.skip("package flash-attn is not installed: pip install flash-attn")
    exact, exact_gradient = run(folder, PACKED_SDPA, torch.float32)
    rounded, rounded_gradient = run(folder, PACKED_SDPA, torch.bfloat16)
    found, gradient = run(folder, implementation, torch.bfloat16)
    # A kernel may be as far from float32 as SDPA in the same 16 bits is, and a half more.
    assert (found - exact).abs().mean() <= 1.5 * (rounded - exact).abs().mean()
    assert (gradient - exact_gradient).norm() <= 1.5 * (rounded_gradient - exact_gradient).norm()
