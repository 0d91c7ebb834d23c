"""Memory of a training step and of an engine, in bytes, computed from a model's architecture.

Sources: model states under ZeRO (Rajbhandari et al., arXiv 1910.02054, section 3 and table 1),
offload (Ren et al., arXiv 2101.06840), activations and recomputation (Korthikanti et al., arXiv
2205.05198, whose count is adapted to gated feed-forward, grouped queries and fused attention).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envs.errors import ConfigError
from learner.config import OptimizerSection
from rollout.weights.model_folder import text_section

GIB = 2**30
FLOAT = 4
"""Bytes of a float32: optimizer state, master weights and logits are never smaller."""
_MOMENTS = 2
_MAX_LIVE = 10**9  # weights that ZeRO-3 keeps gathered at once (stage3_max_live_parameters)
_BUCKET = 5 * 10**8  # elements that one reduction takes together (reduce_bucket_size)
_ENGINE_RESERVE = int(1.0 * GIB)  # CUDA context, NCCL, sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder that determine its memory."""

    parameters: int
    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int
    """Longest sequence of the model (`max_position_embeddings`), in tokens."""


def shape_of(config: Mapping[str, Any], parameters: int) -> ModelShape:
    """Read `config.json`; raises ConfigError naming a key that is missing.

    In a model for images and text the keys are those of its `text_config`.
    """
    config = text_section(config)
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return ModelShape(
            parameters=parameters,
            vocabulary=int(config["vocab_size"]),
            hidden=hidden,
            feed_forward=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            positions=int(config["max_position_embeddings"]),
        )
    except KeyError as error:
        raise ConfigError(f"expected {error} in the model's config.json, found none") from None


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What the model states of one rank depend on; `item` is the size of a weight in bytes."""

    optimizer: OptimizerSection
    ranks: int
    item: int
    trainable: int
    """Number of weights with a gradient: all, or those of the adapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes of one rank's model states, on its device and in host memory."""

    weights: int
    gradients: int
    master: int
    """Float32 copy of the weights that the optimizer updates."""
    moments: int
    host: int
    """Part that offload moved to host memory; the fields above exclude it."""
    buffers: int
    """Gathered layers and reduction buckets."""

    @property
    def device(self) -> int:
        return self.weights + self.gradients + self.master + self.moments + self.buffers


def model_states(shape: ModelShape, plan: TrainingPlan) -> States:
    """Return the states between backward pass and update, when all of them exist at once.

    ZeRO divides moments and master (stage 1 and up), gradients (2 and up) and weights (3) by the
    number of ranks. Muon is counted as AdamW, which needs more.
    """
    stage, ranks, item = plan.optimizer.zero_stage, plan.ranks, plan.item
    share = ranks if stage >= 1 else 1
    trainable = -(-plan.trainable // share)
    weights = item * (-(-shape.parameters // ranks) if stage == 3 else shape.parameters)
    gradients = item * (trainable if stage >= 2 else plan.trainable)
    plain = stage == 0 and item == FLOAT
    master = 0 if plain else FLOAT * trainable
    moments = _MOMENTS * FLOAT * trainable
    buffers = 0
    if stage == 3:
        buffers += item * (_BUCKET + min(_MAX_LIVE, shape.parameters))
    elif ranks > 1 and stage >= 1:
        buffers += item * min(_BUCKET, plan.trainable)
    host = 0
    if plan.optimizer.offload_optimizer == "cpu":
        host += master + moments + FLOAT * trainable  # the gradient is handed over in float32
        master = moments = 0
        gradients = item * min(_BUCKET, plan.trainable)
    if plan.optimizer.offload_params == "cpu":
        host += weights
        weights = 0
    return States(
        weights=weights,
        gradients=gradients,
        master=master,
        moments=moments,
        host=host,
        buffers=buffers,
    )


def layer_activations(shape: ModelShape, item: int) -> int:
    """Return the bytes per token that one layer keeps for its backward pass.

    Per norm the input in float32, the normalised and the scaled value; queries, keys and values,
    attention's output twice (as it comes, and joined over heads) and its float32 log-sum; gate, its
    activation, up and their product.
    """
    norm = shape.hidden * (FLOAT + 2 * item)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = item * (3 * queries + 2 * keys) + FLOAT * shape.heads
    feed_forward = 4 * item * shape.feed_forward
    return 2 * norm + attention + feed_forward


def activations(shape: ModelShape, item: int, tokens: int, *, checkpointing: bool) -> int:
    """Return the bytes that a forward pass over `tokens` keeps; with checkpointing, the inputs of
    all layers and one layer in full.
    """
    layer = layer_activations(shape, item)
    if checkpointing:
        return tokens * (shape.layers * item * shape.hidden + layer)
    return tokens * shape.layers * layer


def logits_chunk(shape: ModelShape, item: int, tokens: int, chunk_logits: int) -> int:
    """Return the bytes of one chunk of logits while its loss is differentiated.

    The logits, two float32 copies while they are normalised, and the gradient of the head's weight.
    """
    rows = min(tokens, max(1, chunk_logits // shape.vocabulary))
    return shape.vocabulary * (rows * (2 * FLOAT + item) + shape.hidden * item)


def adapter_parameters(shape: ModelShape, rank: int, targets: tuple[str, ...]) -> int:
    """Return the parameters of low-rank factors: rank (in + out) each (arXiv 2106.09685)."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "q_proj": shape.hidden + queries,
        "k_proj": shape.hidden + keys,
        "v_proj": shape.hidden + keys,
        "o_proj": queries + shape.hidden,
        "gate_proj": shape.hidden + shape.feed_forward,
        "up_proj": shape.hidden + shape.feed_forward,
        "down_proj": shape.feed_forward + shape.hidden,
    }
    unknown = sorted(set(targets) - set(sizes))
    if unknown:
        raise ConfigError(f"expected target_modules among {', '.join(sizes)}, found {unknown[0]}")
    return shape.layers * rank * sum(sizes[name] for name in targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Bytes of one GPU of an engine, and number of full-length sequences in its cache."""

    weights: int
    activations: int
    cache: int
    cache_per_token: int
    sequences: float


def engine_memory(
    shape: ModelShape, item: int, budget: int, length: int, tensor_parallel: int = 1
) -> EngineMemory:
    """Return the memory of vLLM on one GPU with a budget of `budget` bytes.

    A prompt is prefilled in one piece, so the pass over `length` tokens is set aside first: the
    residual twice, queries, keys, values, and gate and up with their product.
    """
    weights = -(-item * shape.parameters // tensor_parallel)
    widths = shape.head_dim * (shape.heads + 2 * shape.kv_heads) + 3 * shape.feed_forward
    passing = length * item * (2 * shape.hidden + widths // tensor_parallel)
    kv_heads = max(1, shape.kv_heads // tensor_parallel)
    per_token = 2 * shape.layers * kv_heads * shape.head_dim * item
    cache = max(0, budget - weights - passing - _ENGINE_RESERVE)
    return EngineMemory(
        weights=weights,
        activations=passing,
        cache=cache,
        cache_per_token=per_token,
        sequences=cache / (per_token * length),
    )
