"""Packed attention on a GPU: the flash kernels against SDPA per episode, gradients included."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.import_utils import is_flash_attn_2_available

from learner.attention import PACKED_FLASH, PACKED_SDPA, PACKED_VARLEN
from learner.batch import EpisodeBatch
from learner.packing import Pack, pack
from learner.policy import PolicyModule

pytestmark = [pytest.mark.real, pytest.mark.gpu]

CUDA = torch.device("cuda")


def group() -> Pack:
    """Six episodes of 40 to 290 tokens that share their first 30."""
    generator = np.random.default_rng(0)
    lengths = np.arange(40, 340, 50)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = generator.integers(0, 256, int(offsets[-1])).astype(np.int32)
    for start in offsets[1:-1]:
        ids[start : start + 30] = ids[:30]
    count = len(lengths)
    mask = np.concatenate([np.arange(length) >= 30 for length in lengths])
    batch = EpisodeBatch(
        episodes_B=tuple(map(str, range(count))),
        groups_B=("g",) * count,
        outcomes_B=("answered",) * count,
        rewards_B=np.zeros(count, np.float32),
        temperatures_B=np.ones(count, np.float32),
        offsets=offsets,
        token_ids_N=ids,
        phases_N=np.zeros(len(ids), np.int8),
        loss_mask_N=mask,
        logprobs_N=np.zeros(len(ids), np.float32),
    )
    return pack(batch, range(count), mask).to(CUDA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(folder: Path, implementation: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logprobs, and all gradients in one row."""
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=implementation
    ).cuda()
    policy = PolicyModule(model, implementation)
    logprobs_P, _ = policy(group())
    logprobs_P.mean().backward()
    gradients = [parameter.grad.float().flatten() for parameter in policy.parameters()]
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
