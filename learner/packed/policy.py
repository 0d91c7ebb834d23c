"""The policy as a module: packs in, logprobs and entropies of the predicted tokens out."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from envs.errors import ConfigError, MissingError
from learner.packed.attention import attention_arguments, attention_for
from learner.packed.packing import Pack
from learner.packed.token_scores import TokenScores

PREFIX = "policy."
"""Prefix of `PolicyModule` before the Hugging Face name of a parameter."""

CHUNK_LOGITS = 2**25  # logits of one chunk: 128 MiB in float32
_SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "logits_soft_cap")


class PolicyModule(nn.Module):
    """A causal language model that computes logits only where a token is predicted, in chunks."""

    def __init__(self, model: PreTrainedModel, attention: str) -> None:
        super().__init__()
        self.policy: PreTrainedModel = model
        self._attention = attention
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
            **attention_arguments(self._attention, pack),
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


def load_policy(path: str, dtype: torch.dtype, device: torch.device) -> PolicyModule:
    """Load a Hugging Face folder. Raises MissingError; ConfigError if the head scales logits."""
    if not (Path(path) / "config.json").is_file():
        raise MissingError(f"expected a Hugging Face model folder, found no config.json in {path}")
    config = AutoConfig.from_pretrained(path)
    scaled = [name for name in _SCALED_LOGITS if getattr(config, name, None) not in (None, 1, 1.0)]
    if scaled:
        raise ConfigError(
            f"expected a model whose logits are its head's output, found {scaled[0]} in {path}: "
            f"choose a model without it"
        )
    attention = attention_for(device, dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=attention
    )
    model.to(device)
    return PolicyModule(model, attention)
