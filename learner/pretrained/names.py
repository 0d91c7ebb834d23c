"""Names of parameters in a checkpoint: transformers' own conversions, applied backwards.

transformers keeps the experts of a layer in one tensor, and models for images and text under other
prefixes, than the checkpoints that engines read.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)


def checkpoint_names(
    model: PreTrainedModel, named: Iterable[tuple[str, Tensor]]
) -> list[tuple[str, Tensor]]:
    """Return `named`, parameters of `model`, under the names and in the shapes of its checkpoint.

    The conversions are those that loading used. All tensors that one conversion needs must be
    among `named`: those of a layer always are. Tensors may be views of the given ones.
    """
    if not getattr(model, "_weight_conversions", None):
        return list(named)
    return list(revert_weight_conversion(model, dict(named)).items())


def mark_conversions(model: PreTrainedModel, names: Mapping[str, object]) -> None:
    """Give `model`, built without weights, the conversions that loading tensors of `names` uses."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    known = model.state_dict()
    for name in names:
        rename_source_key(name, renamings, converters, model.base_model_prefix, known)
    setting: Any = model  # a plain attribute, which torch's stubs do not admit
    setting._weight_conversions = [entry for entry in mapping if entry.was_used()]


def parameter_shapes(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """Return the parameters of a model on the meta device, tied ones once."""
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    return [(name, tensor) for name, tensor in model.named_parameters() if name not in tied]
