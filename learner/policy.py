"""The policy as a module: packs in, logprobs and entropies of the predicted tokens out."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from envs.errors import ConfigError, MissingError
from learner.attention import attention_arguments, attention_for
from learner.packing import Pack

PREFIX = "policy."
"""What `PolicyModule` puts before the Hugging Face name of a parameter."""

_CHUNK_LOGITS = 2**25  # logits of one chunk: 128 MiB in float32
_SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "logits_soft_cap")


class PolicyModule(nn.Module):
    """A causal language model that computes logits only where a token is predicted, in chunks."""

    def __init__(self, model: PreTrainedModel, attention: str) -> None:
        super().__init__()
        self.policy: PreTrainedModel = model
        self._attention = attention
        self.chunk_logits = _CHUNK_LOGITS

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return differentiable logprobs_P at the sampling temperature, and entropies_P."""
        decoder: Any = self.policy.get_decoder()
        hidden = decoder(
            input_ids=pack.token_ids_T[None],
            position_ids=pack.positions_T[None],
            use_cache=False,
            **attention_arguments(self._attention, pack.lengths_S, pack.token_ids_T.device),
        ).last_hidden_state[0]
        hidden_P = hidden.index_select(0, pack.predict_P)
        rows = max(1, self.chunk_logits // self.policy.config.vocab_size)
        if len(hidden_P) <= rows:
            return self._score(hidden_P, pack.targets_P, pack.temperatures_P)
        parts = [
            checkpoint(self._score, *chunk, use_reentrant=False)
            for chunk in zip(
                hidden_P.split(rows),
                pack.targets_P.split(rows),
                pack.temperatures_P.split(rows),
                strict=True,
            )
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _score(
        self, hidden_P: Tensor, targets_P: Tensor, temperatures_P: Tensor
    ) -> tuple[Tensor, Tensor]:
        head: Any = self.policy.get_output_embeddings()
        logits_PV = head(hidden_P).float() / temperatures_P[:, None]
        logprobs_PV = torch.log_softmax(logits_PV, dim=-1)
        with torch.no_grad():
            entropies_P = -(logprobs_PV.exp() * logprobs_PV).sum(-1)
        return logprobs_PV.gather(1, targets_P[:, None])[:, 0], entropies_P


def load_policy(path: str, dtype: torch.dtype, device: torch.device) -> PolicyModule:
    """Load a Hugging Face folder. Raises MissingError; ConfigError for a head we cannot follow."""
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
