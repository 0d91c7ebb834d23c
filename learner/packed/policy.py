"""The policy as a module: packs in, logprobs and entropies of the predicted tokens out."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from envs.errors import ConfigError, MissingError
from learner.packed.attention import attention_arguments, attention_for
from learner.packed.attention_kind import UNPACKED
from learner.packed.packing import Pack
from learner.packed.token_scores import TokenScores
from learner.pretrained.architecture import (
    BROKEN_MODEL,
    check_logits,
    check_parts,
    mixes,
    one_line,
)
from learner.pretrained.noise import silence, without_noise

PREFIX = "policy."
"""Prefix of `PolicyModule` before the Hugging Face name of a parameter."""

CHUNK_LOGITS = 2**25  # logits of one chunk: 128 MiB in float32


class PolicyModule(nn.Module):
    """A causal language model that computes logits only where a token is predicted, in chunks."""

    def __init__(self, model: PreTrainedModel, attention: str) -> None:
        super().__init__()
        self.policy: PreTrainedModel = model
        self.attention = attention
        self.packs = attention != UNPACKED
        """Whether a pass takes several episodes."""
        self.chunk_logits = CHUNK_LOGITS
        self.entropy_gradient = False
        """Give entropies a gradient; this keeps all logits of a pack for the backward pass."""

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return differentiable logprobs_P at the sampling temperature, and entropies_P."""
        decoder: Any = self.policy.get_decoder()
        hidden_UH = decoder(
            input_ids=pack.token_ids_U[None],
            position_ids=pack.positions_U[None],
            use_cache=False,
            **attention_arguments(self.attention, pack),
        ).last_hidden_state[0]
        head: Any = self.policy.get_output_embeddings()
        hidden_QH = hidden_UH.index_select(0, pack.predict_Q)
        if type(head) is nn.Linear and head.bias is None and not self.entropy_gradient:
            # One access to the weight per pass, not per chunk: under ZeRO 3 each is a collective.
            logprobs_Q, entropies_Q = TokenScores.apply(
                hidden_QH, head.weight, pack.targets_Q, pack.temperatures_Q, self.chunk_logits
            )
        else:
            logits_QV = head(hidden_QH).float() / pack.temperatures_Q[:, None]
            all_QV = torch.log_softmax(logits_QV, dim=-1)
            logprobs_Q = all_QV.gather(1, pack.targets_Q[:, None])[:, 0]
            of_entropy_QV = all_QV if self.entropy_gradient else all_QV.detach()
            entropies_Q = -(of_entropy_QV.exp() * of_entropy_QV).sum(-1)
        return logprobs_Q.index_select(0, pack.scores_P), entropies_Q[pack.scores_P]


def load_policy(
    path: str, dtype: torch.dtype, device: torch.device, *, packing: bool = True
) -> PolicyModule:
    """Load a Hugging Face folder; parameters that text does not use are frozen.

    Episodes are packed if `packing` and attention alone mixes positions in this model. The model's
    own dropout is off, so that it is the same policy in training as in sampling. Raises
    MissingError; ConfigError if the head scales logits, weights are quantised, or transformers
    cannot build the model with that attention.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise MissingError(f"expected a Hugging Face model folder, found no config.json in {path}")
    check_logits(folder)
    attention = attention_for(device, dtype) if packing and not mixes(folder) else UNPACKED
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=without_noise(AutoConfig.from_pretrained(path)),
            dtype=dtype,
            attn_implementation=attention,
        )
    except BROKEN_MODEL as error:
        raise ConfigError(
            f"expected a model that transformers builds with the attention {attention!r}, found in "
            f"{path}: {one_line(error)}: {_way_out(attention)}"
        ) from error
    check_parts(model, folder)
    silence(model)
    model.to(device)
    _freeze_other_senses(model)
    return PolicyModule(model, attention)


def _way_out(attention: str) -> str:
    another = "choose another model"
    if attention == UNPACKED:
        return another
    return f"set learner.packing and sft.packing to 'off', or {another}"


def _freeze_other_senses(model: Any) -> None:
    """Take no gradients of what images and sound pass through: text never does."""
    of_text = {
        id(parameter)
        for part in (
            model.get_decoder(),
            model.get_input_embeddings(),
            model.get_output_embeddings(),
        )
        if part is not None
        for parameter in part.parameters()
    }
    for parameter in model.parameters():
        if id(parameter) not in of_text:
            parameter.requires_grad_(False)
