"""What the weights were after a step: a hash per tensor, which a replayed step is compared with."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pyarrow as pa
import torch
import xxhash
from torch import Tensor

from learner.report import StepReport

_WEIGHTS = b"weights"
_WHOLE_BITS = 53
"""A float holds whole numbers of so many bits."""


def tensor_digests(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Return the 64-bit xxh3 hash of every tensor's bytes, in hexadecimal, by name."""
    return {
        name: xxhash.xxh3_64_hexdigest(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        )
        for name, tensor in named
    }


def whole_digest(digests: Mapping[str, str]) -> float:
    """Return one whole number below 2^53 that stands for all tensors."""
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return float(xxhash.xxh3_64_intdigest(text.encode()) >> (64 - _WHOLE_BITS))


def sealed(report: StepReport, digests: Mapping[str, str]) -> StepReport:
    """Return the report of a step with the weights it ended in: as metric `weights_digest`, and
    tensor by tensor in the metadata of its annotations.
    """
    annotations = report.annotations
    if annotations is not None:
        annotations = annotations.replace_schema_metadata({_WEIGHTS: json.dumps(dict(digests))})
    metrics = report.metrics | {"weights_digest": whole_digest(digests)}
    return replace(report, metrics=metrics, annotations=annotations)


def recorded_digests(annotations: pa.Table) -> dict[str, str]:
    """Return the digests that `sealed` put there; empty where it did not."""
    return json.loads((annotations.schema.metadata or {}).get(_WEIGHTS, b"{}"))
