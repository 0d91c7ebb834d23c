"""Linear layers on CPU whose rows do not depend on how many rows there are.

oneDNN multiplies a single row by another kernel than several, where a matrix has many columns: the
last bits of a token's logits then tell whether it was computed alone. Here a single row is computed
as one of two. Norms, rotary embedding, attention and sampler go row by row in float32 as they are.

Importing this module is the patch, and the only hook in time: vLLM imports the module of
`worker_extension_cls` in every worker before it builds the layers, which look the function up then.
"""

from typing import Any

import torch
import vllm.model_executor.layers.utils as vllm_linear

from rollout.engines.vllm_weights import WorkerExtension

_ROWS = 64
_COUNTS = (1, 2, 3, 5, 8, 16, 17, 33, 48)


def row_invariant_gemm(
    layer: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply as vLLM's `cpu_unquantized_gemm` does, but never a single row."""
    if x.numel() != x.shape[-1]:
        return layer.cpu_linear(x, weight, bias)
    pair = x.reshape(1, -1).repeat(2, 1)
    return layer.cpu_linear(pair, weight, bias)[:1].reshape(*x.shape[:-1], -1)


vllm_linear.cpu_unquantized_gemm = row_invariant_gemm


class RowInvariantExtension(WorkerExtension):
    """Extension of a vLLM worker for deterministic runs."""

    model_runner: Any

    def row_variant_layers(self) -> list[str]:
        """Return the linear layers, one of each shape, whose rows depend on the number of rows.

        Layers of experts are among them untried: how they group rows depends on every token.
        """
        seen: set[tuple[int, int]] = set()
        found: list[str] = []
        for name, layer in self.model_runner.model.named_modules():
            if getattr(getattr(layer, "quant_method", None), "moe_kernel", None) is not None:
                found.append(f"{name} (experts)")
            columns = getattr(layer, "input_size_per_partition", None) or getattr(
                layer, "embedding_dim", None
            )
            rows = getattr(layer, "output_size_per_partition", None) or getattr(
                layer, "num_embeddings_per_partition", None
            )
            if not hasattr(layer, "cpu_linear") or not columns or not rows:
                continue
            if (rows, columns) not in seen and _rows_vary(layer, columns):
                found.append(f"{name} ({rows} x {columns})")
            seen.add((rows, columns))
        return found


def _rows_vary(layer: Any, columns: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    dtype = next((p.dtype for p in layer.parameters()), torch.float32)
    x = torch.randn(_ROWS, columns, generator=generator).to(dtype)
    weight: Any = getattr(layer, "weight", None)  # None where the layer keeps it packed
    whole = row_invariant_gemm(layer, x, weight)
    return any(
        not torch.equal(row_invariant_gemm(layer, x[:count].contiguous(), weight), whole[:count])
        for count in _COUNTS
    )
