"""What must stay the same when a run is resumed: one table for all kinds of runs, with reasons."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster.config.run_config import RunConfig
from cluster.lifecycle.resume_check import differences
from envs.errors import ConfigError
from rollout.store.run_layout import RunKind

_ALL = frozenset(RunKind)
_TRAIN, _SFT = frozenset({RunKind.TRAIN}), frozenset({RunKind.SFT})
_UNRESOLVED = "auto"
"""A tool format that is still to be found; a run that is opened by a command has found it."""
_EVAL, _COLLECT = frozenset({RunKind.EVAL}), frozenset({RunKind.COLLECT})


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRule:
    """Sections and keys that a resumed run of some kinds must have as before, and why."""

    keys: tuple[str, ...]
    kinds: frozenset[RunKind]
    reason: str
    but: tuple[str, ...] = ()
    """Keys below `keys` that may change."""
    applies: Callable[[RunConfig], bool] = lambda config: True
    """Whether the rule holds under the recipe that the run had."""


RULES = (
    ResumeRule(
        keys=("run.seed",),
        kinds=_ALL,
        reason="tasks, episodes and the order of training data are derived from it",
    ),
    ResumeRule(
        keys=("model",),
        kinds=_ALL,
        but=("model.chat_template", "model.template_options", "model.tool_format"),
        reason="episodes of another model, or of other tokens, are another experiment",
    ),
    ResumeRule(
        keys=("model.chat_template", "model.template_options"),
        kinds=_ALL,
        reason="the same conversation would be other tokens",
    ),
    ResumeRule(
        keys=("model.tool_format",),
        kinds=_ALL,
        reason="it decides which text of a turn is a tool call, and what the prompt asks for",
        applies=lambda config: config.model.tool_format != _UNRESOLVED,
    ),
    ResumeRule(keys=("env",), kinds=_ALL, reason="it defines the tasks"),
    ResumeRule(
        keys=("judge", "simulated_user"),
        kinds=_ALL,
        but=tuple(
            f"{section}.{key}"
            for section in ("judge", "simulated_user")
            for key in ("base_url", "key_variable", "timeout_s", "attempts")
        ),
        reason="they decide what users say and how episodes are rewarded",
    ),
    ResumeRule(
        keys=("episode",),
        kinds=_ALL,
        reason="it defines what an episode may do and how it is rewarded",
    ),
    ResumeRule(
        keys=("rollouts.group_size",),
        kinds=_TRAIN,
        reason="an advantage compares the episodes of a group, some of which are stored",
    ),
    ResumeRule(
        keys=("run.deterministic",),
        kinds=_TRAIN,
        reason="it decides how groups are numbered",
    ),
    ResumeRule(
        keys=("rollouts.groups_per_step", "rollouts.max_refills"),
        kinds=_TRAIN,
        reason="under run.deterministic each step has its own range of group numbers",
        applies=lambda config: config.run.deterministic,
    ),
    ResumeRule(
        keys=("learner.ranks",),
        kinds=_TRAIN | _SFT,
        reason="a checkpoint has one part per rank",
    ),
    ResumeRule(
        keys=(
            "learner.zero_stage",
            "learner.optimizer",
            "learner.betas",
            "learner.weight_decay",
        ),
        kinds=_TRAIN,
        reason="a checkpoint holds the state of this optimizer",
    ),
    ResumeRule(
        keys=("sft",),
        kinds=_SFT,
        but=("sft.checkpoint_every",),
        reason="it defines the optimizer, whose state a checkpoint holds, and the order of steps",
    ),
    ResumeRule(
        keys=("teacher.episodes",),
        kinds=_SFT,
        reason="it decides which episodes are trained on",
    ),
    ResumeRule(
        keys=("collect.source", "collect.samples", "collect.temperature"),
        kinds=_COLLECT,
        reason="they decide what acts, how it samples, and how many episodes a task has",
    ),
    ResumeRule(
        keys=(
            "collect.endpoint.model",
            "collect.endpoint.tool_format",
            "collect.endpoint.thinking",
        ),
        kinds=_COLLECT,
        reason="the endpoint's model and its prompt make the episodes",
        applies=lambda config: config.collect.source == "endpoint",
    ),
    ResumeRule(
        keys=("eval",),
        kinds=_EVAL,
        but=("eval.by",),
        reason="it defines the tasks and the sampling that one result stands for",
    ),
    ResumeRule(
        keys=(
            "tools.call_timeout_s",
            "tools.session_cpu_s",
            "tools.session_memory_mib",
            "tools.reply_limit_bytes",
            "tools.isolation.profile",
            "tools.isolation.imports",
            "tools.isolation.packages",
            "tools.isolation.scratch_mib",
        ),
        kinds=_EVAL,
        reason="what tools answer depends on these limits, and one result stands for one of them",
    ),
)
"""Every other key may change. In particular the rest of `[tools]`: how many sessions a server
holds, how strongly tool code is isolated and whether calls are recorded change no answer. Training
and collections may change tool limits, as they may change a learning rate.
"""


def check_unchanged(
    kind: RunKind, what: str, before: RunConfig, now: RunConfig, instead: str
) -> None:
    """Raise ConfigError, which lists every difference with its reason, where a run of `kind` that
    started with `before` cannot be resumed with `now`. `what` names the run, `instead` a way out.
    """
    found = list(_broken(kind, before, now))
    if found:
        raise ConfigError(
            f"{what} was started with other settings ({'; '.join(found)}): "
            f"resume with the same ones, or {instead}"
        )


def rules_of(kind: RunKind) -> Sequence[ResumeRule]:
    """Return the rules for runs of `kind`."""
    return [rule for rule in RULES if kind in rule.kinds]


def _broken(kind: RunKind, before: RunConfig, now: RunConfig) -> Iterator[str]:
    if now.model.tool_format == _UNRESOLVED:
        section = now.model.model_copy(update={"tool_format": before.model.tool_format})
        now = now.model_copy(update={"model": section})
    for rule in rules_of(kind):
        if rule.applies(before) and (found := differences(before, now, rule.keys, rule.but)):
            yield f"{', '.join(found)}: {rule.reason}"
