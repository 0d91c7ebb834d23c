"""Names that other frameworks and habits give to our keys, so that an error can name ours."""

from collections.abc import Collection, Iterable

SYNONYMS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("learner.lr", "sft.lr"),
    "batch_size": ("rollouts.groups_per_step", "learner.micro_batch_tokens", "sft.batch_tokens"),
    "train_batch_size": ("rollouts.groups_per_step", "sft.batch_tokens"),
    "micro_batch_size": ("learner.micro_batch_tokens", "sft.micro_batch_tokens"),
    "per_device_train_batch_size": ("learner.micro_batch_tokens", "sft.micro_batch_tokens"),
    "num_generations": ("rollouts.group_size",),
    "rollout_n": ("rollouts.group_size",),
    "n_samples_per_prompt": ("rollouts.group_size",),
    "num_workers": ("rollouts.workers",),
    "n_workers": ("rollouts.workers",),
    "num_engines": ("rollouts.workers",),
    "max_steps": ("run.steps",),
    "num_steps": ("run.steps",),
    "total_steps": ("run.steps",),
    "total_training_steps": ("run.steps",),
    "num_epochs": ("sft.epochs", "learner.ppo_epochs"),
    "num_train_epochs": ("sft.epochs",),
    "num_iterations": ("learner.ppo_epochs",),
    "num_minibatches": ("learner.minibatches",),
    "save_steps": ("run.checkpoint_every", "sft.checkpoint_every"),
    "save_freq": ("run.checkpoint_every", "sft.checkpoint_every"),
    "save_interval": ("run.checkpoint_every", "sft.checkpoint_every"),
    "save_total_limit": ("run.keep_checkpoints",),
    "output_dir": ("run.dir",),
    "run_name": ("run.name",),
    "experiment_name": ("run.name",),
    "random_seed": ("run.seed",),
    "beta": ("learner.kl_coef",),
    "kl_beta": ("learner.kl_coef",),
    "kl_loss_coef": ("learner.kl_coef",),
    "init_kl_coef": ("learner.kl_coef",),
    "entropy_coeff": ("learner.entropy_coef",),
    "epsilon": ("learner.clip_low",),
    "clip_eps": ("learner.clip_low",),
    "cliprange": ("learner.clip_low",),
    "clip_ratio": ("learner.clip_low",),
    "epsilon_high": ("learner.clip_high",),
    "clip_ratio_high": ("learner.clip_high",),
    "adv_estimator": ("learner.advantage",),
    "loss_type": ("learner.loss",),
    "loss_agg_mode": ("learner.aggregation",),
    "scale_rewards": ("learner.advantage",),
    "gradient_checkpointing": ("learner.activation_checkpointing", "sft.activation_checkpointing"),
    "grad_clip": ("learner.max_grad_norm", "sft.max_grad_norm"),
    "clip_grad": ("learner.max_grad_norm", "sft.max_grad_norm"),
    "world_size": ("learner.ranks",),
    "num_gpus": ("cluster.gpus_per_rank", "cluster.gpus_per_worker"),
    "model_name": ("model.path",),
    "model_name_or_path": ("model.path",),
    "pretrained": ("model.path",),
    "torch_dtype": ("model.dtype",),
    "precision": ("model.dtype",),
    "max_length": ("model.max_model_len",),
    "max_seq_len": ("model.max_model_len",),
    "max_seq_length": ("model.max_model_len",),
    "context_length": ("model.max_model_len",),
    "chat_template_path": ("model.chat_template",),
    "chat_template_kwargs": ("model.template_options",),
    "lora_rank": ("model.lora.rank",),
    "lora_r": ("model.lora.rank",),
    "lora_alpha": ("model.lora.alpha",),
    "lora_dropout": ("model.lora.dropout",),
    "max_new_tokens": ("episode.max_tokens_per_turn",),
    "max_tokens": ("episode.max_tokens_per_turn",),
    "max_completion_length": ("episode.max_tokens_per_turn",),
    "max_response_length": ("episode.max_tokens_per_turn",),
    "max_turns": ("episode.execution.turns", "episode.trial.turns"),
    "tp": ("engine.tensor_parallel_size",),
    "tensor_parallel": ("engine.tensor_parallel_size",),
    "gpu_memory": ("engine.gpu_memory_utilization",),
    "async_level": ("rollouts.max_staleness",),
    "max_async_level": ("rollouts.max_staleness",),
    "off_policy_steps": ("rollouts.max_staleness",),
    "timeout": ("rollouts.episode_timeout_s", "tools.call_timeout_s"),
    "dataset": ("env.path",),
    "data_path": ("env.path",),
    "benchmark": ("env.name",),
    "num_samples": ("eval.samples", "collect.samples"),
}
"""Keys by the names that TRL, verl, OpenRLHF, prime-rl and Hugging Face's Trainer use."""
_SHORTEST = 4
"""Characters that a part of a key needs to suggest it."""


def synonyms_of(word: str) -> tuple[str, ...]:
    """Return our keys that other frameworks call `word`, however it separates its words."""
    return SYNONYMS.get(word.lower().replace("-", "_").lstrip("_"), ())


def alike(word: str, known: Iterable[str]) -> list[str]:
    """Return the names in `known` that `word` abbreviates, spells out, or is a part of.

    `mgn` abbreviates `max_grad_norm`, `learning_rate` spells `lr` out, and `clip` is a part of
    `clip_low`.
    """
    names, plain = list(known), word.lower().replace("-", "_")
    found = [name for name in names if len(plain) > 1 and plain == initials(name)]
    found += [name for name in names if len(name) > 1 and name == initials(plain)]
    if not found:
        found = [name for name in names if _is_part(plain, name) or _is_part(name, plain)]
    return found


def initials(name: str) -> str:
    """Return the first letters of a name's words: `lr` of `learning_rate`."""
    return "".join(word[:1] for word in name.split("_") if word)


def nearest(paths: Collection[str], section: str) -> list[str]:
    """Return the paths within `section` where there are any, else all of them."""
    return [path for path in paths if path.partition(".")[0] == section] or list(paths)


def _is_part(part: str, name: str) -> bool:
    words = name.split("_")
    return part != name and len(part) >= _SHORTEST and (part in words or name.startswith(part))
