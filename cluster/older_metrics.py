"""Rows of metrics that older versions recorded, read under today's names.

Three things have changed. Some numbers have another name (`Metric.before`). Some were measured over
something else: they keep a name of their own, so that no curve joins two meanings. And a number of
which nothing was measured was recorded as 0: it is left out, as such a number is today.
"""

from collections.abc import Mapping, Sequence

from cluster.metrics import CURVES, METRICS, Metric
from rollout.store.run_reader import MetricsRow

_RENAMED = {metric.before: metric.name for metric in METRICS.values() if metric.before}
_NEW = "loss_tokens"
"""Every row of today has it, and no older one."""

_GIVEN = "over the episodes given to the learner, which dynamic sampling had selected"
_UPDATES = "over `updates * tokens`, too small by the factor `learner.minibatches`"
_SUM = "weighted and masked like the loss: a sum that depends on `learner.aggregation`"
_CHANGED = {
    "answer_mean": ("answer_mean", "Score of answers", _GIVEN),
    "reward_mean": ("reward_mean", "Reward", _GIVEN),
    "trial_calls": ("given_trial_calls", "Trial calls", _GIVEN),
    "informative_trials": ("informative_trials", "Distinct trial calls", _GIVEN),
    "sampled_tokens": ("given_sampled_tokens", "Tokens sampled", _GIVEN),
    "sampled_tokens_per_s": ("given_sampled_tokens_per_s", "Tokens sampled per second", _GIVEN),
    "reference_kl": ("weighted_reference_kl", "KL to reference", _SUM),
    "clip_fraction": ("minibatch_clip_fraction", "Share of clipped tokens", _UPDATES),
    "masked_fraction": ("minibatch_masked_fraction", "Share of masked tokens", _UPDATES),
    "corrected_fraction": ("minibatch_corrected_fraction", "Share of corrected tokens", _UPDATES),
    **{
        f"{name}{part}": (f"given_{name}{part}", f"`{name}{part}`", _GIVEN)
        for name in ("trial_yield", "trial_yield_any")
        for part in ("", "_se", "_groups")
    },
}
"""By the old name: the name to read it under, what it is, and what it was taken over."""

OLDER: Mapping[str, Metric] = {
    name: Metric(
        name=name,
        unit=METRICS[old].unit if old in METRICS else "",
        over="given",
        averaging="as recorded",
        meaning=f"{what}, {over}.",
        title=f"{what.strip('`').lower()} (older version)",
    )
    for old, (name, what, over) in _CHANGED.items()
}
"""Numbers that only rows of older versions have, by the name that `read_metrics` gives them."""

OLDER_CURVES = ("reward_mean", "answer_mean", "given_trial_calls", "weighted_reference_kl")
"""Those that are plotted."""

_ZERO_WITHOUT_UPDATE = frozenset(
    {
        *("loss", "grad_norm", "lr", "start_entropy", "mismatch", "sequence_tokens_per_s"),
        *("abs_dlogp_mean", "abs_dlogp_p99", "abs_dlogp_max", "advantage_size"),
        *("minibatch_clip_fraction", "minibatch_masked_fraction", "minibatch_corrected_fraction"),
        *("trial_cost_charged", "trial_cost_payers"),
    }
)
"""Not measured in a step without an update."""
_ZERO_WHERE_OFF = frozenset({"weighted_reference_kl", "trial_advantage_size"})
"""0 where the option is off that measures them."""


def is_older(values: Mapping[str, float]) -> bool:
    """Whether an older version recorded the row."""
    return _NEW not in values


def read_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a row under today's names; those of an older row as said above."""
    if not is_older(values):
        return dict(values)
    changed = {old: name for old, (name, _, _) in _CHANGED.items()}
    names = {**_RENAMED, **changed}
    found = {names.get(name, name): value for name, value in values.items()}
    idle = found.get("optimizer_steps") == 0
    return {
        name: value
        for name, value in found.items()
        if not (idle and name in _ZERO_WITHOUT_UPDATE)
        and not (value == 0 and name in _ZERO_WHERE_OFF)
    }


def training_series(metrics: Sequence[MetricsRow]) -> dict[str, dict[int, float]]:
    """Return the plotted metrics by step, rows of older versions included; values that were not
    measured are missing.
    """
    rows = [(row.step, read_metrics(row.values)) for row in metrics]
    series = {
        name: {step: values[name] for step, values in rows if name in values}
        for name in (*CURVES, *OLDER_CURVES)
    }
    return {name: values for name, values in series.items() if values}
