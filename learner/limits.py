"""Limits of a model: size of its vocabulary, and longest episode."""

from dataclasses import dataclass
from pathlib import Path

from envs.errors import ConfigError, LearnerError
from learner.batch import EpisodeBatch
from rollout.weights.model_folder import read_architecture, text_section


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """`vocabulary` counts token ids; `max_tokens` is the longest episode that a run allows."""

    vocabulary: int
    max_tokens: int

    def check(self, batch: EpisodeBatch) -> None:
        """Raise LearnerError for token ids that the model does not have."""
        ids_N = batch.token_ids_N
        if len(ids_N) and not (ids_N.min() >= 0 and ids_N.max() < self.vocabulary):
            raise LearnerError(
                f"expected token ids from 0 to {self.vocabulary - 1}, found {ids_N.min()} to "
                f"{ids_N.max()}: these episodes are from another tokenizer"
            )

    def fitting(self, batch: EpisodeBatch) -> list[int]:
        """Return the episodes that are short enough. Raises LearnerError if there is none."""
        indices = [i for i in range(len(batch)) if batch.longest(i) <= self.max_tokens]
        if not indices:
            raise LearnerError(
                f"expected an episode of at most model.max_model_len = {self.max_tokens} tokens, "
                f"found only longer ones, the shortest of {batch.lengths_B.min()}: raise it"
            )
        return indices


def read_limits(model_path: Path, max_model_len: int) -> ModelLimits:
    """Read config.json of a Hugging Face folder.

    Raises ConfigError where `max_model_len` exceeds the model's positions.
    """
    config = text_section(read_architecture(model_path))
    positions = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    if positions is not None and max_model_len > positions and not scaled:
        raise ConfigError(
            f"expected model.max_model_len of at most {positions}, the positions of {model_path}, "
            f"found {max_model_len}: lower it"
        )
    return ModelLimits(int(config["vocab_size"]), max_model_len)
