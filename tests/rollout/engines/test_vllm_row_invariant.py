"""The replaced linear layer on vLLM's real oneDNN kernel; importing vLLM takes seconds."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.real

ROWS, COLUMNS = 576, 1536
"""The shape of SmolLM2-135M's down projection."""


class Layer(torch.nn.Module):
    """A linear layer as vLLM leaves it on CPU once its weights are packed."""

    def __init__(self, seed: int) -> None:
        import vllm._custom_ops as ops

        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        weight = torch.randn(ROWS, COLUMNS, generator=draw) * 0.05
        handler = ops.create_onednn_mm(weight.t(), 32)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.input_size_per_partition, self.output_size_per_partition = COLUMNS, ROWS
        self.cpu_linear = lambda x, weight, bias: ops.onednn_mm(handler, x, bias)


@pytest.fixture(scope="module")
def invariant() -> Any:
    from rollout.engines import vllm_row_invariant

    return vllm_row_invariant


def test_a_row_is_computed_alike_alone_and_among_others(invariant: Any) -> None:
    layer, x = Layer(0), torch.randn(40, COLUMNS, generator=torch.Generator().manual_seed(1))
    whole = invariant.row_invariant_gemm(layer, x, layer.weight)
    for count in (1, 2, 3, 7, 8, 33):
        rows = invariant.row_invariant_gemm(layer, x[:count].contiguous(), layer.weight)
        assert torch.equal(rows, whole[:count])
    flat = invariant.row_invariant_gemm(layer, x[0], layer.weight)
    assert flat.shape == (ROWS,)
    assert torch.equal(flat, whole[0])


def test_the_check_names_layers_whose_rows_depend_on_their_number(invariant: Any) -> None:
    good, bad = Layer(0), Layer(0)
    bad.output_size_per_partition = ROWS + 1  # of another shape, or it would not be looked at
    plain = bad.cpu_linear
    bad.cpu_linear = lambda x, weight, bias: plain(x, weight, bias) + (len(x) == 3) * 1e-6
    extension = invariant.RowInvariantExtension()
    extension.model_runner = SimpleNamespace(model=torch.nn.ModuleDict({"good": good, "bad": bad}))
    assert extension.row_variant_layers() == [f"bad ({ROWS + 1} x {COLUMNS})"]
