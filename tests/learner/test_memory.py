"""Memory formulas against hand-computed numbers, and against tensors that a forward pass keeps."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from envs.errors import ConfigError
from learner.config import LearnerConfig
from learner.memory import (
    ModelShape,
    TrainingPlan,
    activations,
    adapter_parameters,
    engine_memory,
    layer_activations,
    model_states,
    shape_of,
)
from learner.pretrained.resolve import check_context

SEVEN = ModelShape(
    parameters=7_615_616_512,
    vocabulary=152_064,
    hidden=3_584,
    feed_forward=18_944,
    layers=28,
    heads=28,
    kv_heads=4,
    head_dim=128,
    positions=32_768,
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def plan(ranks: int, item: int, shape: ModelShape = SEVEN, **optimizer: object) -> TrainingPlan:
    section = LearnerConfig.model_validate(optimizer)
    return TrainingPlan(section, ranks, item, shape.parameters)


@pytest.mark.parametrize(
    ("stage", "ranks", "bytes_per_weight"),
    # Mixed precision: 2 + 2 + 12, of which ZeRO divides 12, then 2, then 2 (table 1 of the paper).
    [(1, 4, 2 + 2 + 12 / 4), (2, 4, 2 + (2 + 12) / 4), (3, 4, 16 / 4), (3, 64, 16 / 64)],
)
def test_states_are_those_of_the_zero_paper(
    stage: int, ranks: int, bytes_per_weight: float
) -> None:
    states = model_states(SEVEN, plan(ranks, 2, zero_stage=stage))
    assert states.device - states.buffers == pytest.approx(
        bytes_per_weight * SEVEN.parameters, rel=1e-6
    )


def test_float32_without_zero_has_no_master_copy() -> None:
    states = model_states(SEVEN, plan(1, 4, zero_stage=0))
    assert states.device == 16 * SEVEN.parameters
    assert states.master == 0


def test_offload_moves_state_to_the_host() -> None:
    states = model_states(
        SEVEN, plan(4, 2, zero_stage=3, offload_optimizer="cpu", offload_params="cpu")
    )
    share = SEVEN.parameters // 4
    assert states.weights == states.master == states.moments == 0
    assert states.host == 16 * share + 2 * share  # master, two moments, gradient; weights


def test_activations_of_a_layer_by_hand() -> None:
    # bf16: norms 2 x 3584 x 8; q, k, v, two outputs 2 x (3 x 3584 + 2 x 512), log-sums 4 x 28;
    # feed-forward 4 x 2 x 18944
    by_hand = 2 * 3_584 * 8 + 2 * (3 * 3_584 + 2 * 512) + 4 * 28 + 4 * 2 * 18_944
    assert layer_activations(SEVEN, 2) == by_hand
    assert activations(SEVEN, 2, 10, checkpointing=False) == 10 * 28 * by_hand
    assert activations(SEVEN, 2, 10, checkpointing=True) == 10 * (28 * 2 * 3_584 + by_hand)


def test_an_engine_by_hand() -> None:
    engine = engine_memory(SEVEN, 2, 72 * 2**30, 32_768)
    assert engine.weights == 2 * SEVEN.parameters
    assert engine.cache_per_token == 2 * 28 * 4 * 128 * 2  # keys and values: 56 KiB
    assert engine.sequences == engine.cache / (57_344 * 32_768)
    assert engine_memory(SEVEN, 2, 72 * 2**30, 32_768, 4).cache_per_token == 57_344 // 4
    assert engine_memory(SEVEN, 2, 10 * 2**30, 32_768).sequences == 0


def test_adapters_by_hand() -> None:
    per_layer = 2 * (3_584 + 3_584) + 2 * (3_584 + 512) + 3 * (3_584 + 18_944)
    assert adapter_parameters(SEVEN, 32, TARGETS) == 28 * 32 * per_layer == 80_740_352
    with pytest.raises(ConfigError, match="embed"):
        adapter_parameters(SEVEN, 32, ("embed_tokens",))


def small_llama(layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )


def kept_bytes(layers: int, dtype: torch.dtype, *, checkpointing: bool = False) -> int:
    """Return the bytes of all tensors that a forward pass over 128 tokens keeps for the backward
    pass, weights left out.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(small_llama(layers))
    torch.nn.Module.to(model, dtype)
    model.set_attn_implementation("sdpa")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.arange(128)[None] % 64
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("dtype", "item"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_activations_are_what_a_layer_keeps(dtype: torch.dtype, item: int) -> None:
    """The difference between four layers and two, so that embedding and final norm cancel."""
    measured = (kept_bytes(4, dtype) - kept_bytes(2, dtype)) / 2 / 128
    shape = shape_of(small_llama(1).to_dict(), 0)
    assert measured == pytest.approx(layer_activations(shape, item), rel=0.1)


def test_positions_bound_the_length() -> None:
    check_context({"max_position_embeddings": 32_768}, 32_768)
    with pytest.raises(ConfigError, match=r"32768.*found 32769"):
        check_context({"max_position_embeddings": 32_768}, 32_769)
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    check_context({"max_position_embeddings": 32_768, "rope_scaling": yarn}, 131_072)
    with pytest.raises(ConfigError, match=r"131072.*yarn"):
        check_context({"max_position_embeddings": 32_768, "rope_scaling": yarn}, 131_073)


def test_a_nested_text_config_is_read() -> None:
    with pytest.raises(ConfigError, match="at most 64"):
        check_context({"text_config": {"max_position_embeddings": 64}}, 65)


@pytest.mark.parametrize(
    "wrong",
    [
        {"zero_stage": 0, "offload_optimizer": "cpu"},
        {"zero_stage": 2, "offload_params": "cpu", "offload_optimizer": "cpu"},
        {"zero_stage": 3, "offload_params": "cpu"},
    ],
)
def test_offload_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="offload"):
        LearnerConfig.model_validate(wrong)


def gradients(folder: Path, *, checkpointing: bool) -> tuple[float, list[torch.Tensor], int]:
    """Return the loss, the gradients, and how often layers were computed."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    computed = 0

    def count(*_: object) -> None:
        nonlocal computed
        computed += 1

    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(count)
    ids = torch.arange(40)[None] % 64
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters() if p.grad is not None], computed


def test_checkpointing_recomputes_and_changes_nothing(llama_folder: Path) -> None:
    loss, plain, once = gradients(llama_folder, checkpointing=False)
    same_loss, recomputed, twice = gradients(llama_folder, checkpointing=True)
    assert same_loss == loss
    assert len(plain) == len(recomputed)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert twice == 2 * once
    kept = kept_bytes(4, torch.float32, checkpointing=True)
    assert kept < kept_bytes(4, torch.float32) / 4
