"""Digests of the weights after a step: what `trialrun replay-step` compares a replayed step with.

Two kinds. *Pushed*: one hash over the bytes that engines load, a by-product of the push, at every
step; with LoRA these bytes are only the adapters. *Whole*: one hash per tensor of the complete
model, merged with its adapters; it costs a gather and a copy to the host, so only steps with a
checkpoint and runs with `run.deterministic` have it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pyarrow as pa
import torch
import xxhash
from torch import Tensor

from learner.report import StepReport
from rollout.weights.manifest import WeightManifest

WHOLE_METRIC = "weights_digest"
PUSHED_METRIC = "pushed_weights_digest"
_METADATA = b"weights"
_METRIC_BITS = 53
"""A metric is a float, which holds integers of at most this many bits exactly."""


def tensor_digests(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Return the 64-bit xxh3 hash of every tensor's bytes, in hexadecimal, by name."""
    return {
        name: xxhash.xxh3_64_hexdigest(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        )
        for name, tensor in named
    }


def combined_digest(digests: Mapping[str, str]) -> float:
    """Return one integer below 2^53 for all tensors together."""
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return _as_metric(xxhash.xxh3_64_intdigest(text.encode()))


def with_weight_digests(report: StepReport, digests: Mapping[str, str]) -> StepReport:
    """Return `report` with the whole digests: combined in its metrics, and tensor by tensor in the
    metadata of its annotations.
    """
    annotations = report.annotations
    if annotations is not None:
        annotations = annotations.replace_schema_metadata({_METADATA: json.dumps(dict(digests))})
    metrics = report.metrics | {WHOLE_METRIC: combined_digest(digests)}
    return replace(report, metrics=metrics, annotations=annotations)


def recorded_digests(annotations: pa.Table) -> dict[str, str]:
    """Return the digests that `with_weight_digests` stored; empty for a step without them."""
    return json.loads((annotations.schema.metadata or {}).get(_METADATA, b"{}"))


def push_metrics(manifest: WeightManifest) -> dict[str, float]:
    """Return the pushed digest as a metric; none where the transport computes no checksum.

    The publisher has hashed the pushed bytes for the receivers' check: nothing is hashed again.
    """
    if not manifest.checksum:
        return {}
    return {PUSHED_METRIC: _as_metric(int(manifest.checksum, 16))}


def _as_metric(digest: int) -> float:
    return float(digest >> (64 - _METRIC_BITS))
