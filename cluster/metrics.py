"""Every metric that a training step records in `metrics/`: its unit, its meaning, its format."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that a step records under `name`."""

    name: str
    unit: str
    meaning: str
    label: str = ""
    """Name in a line about a step; empty stands for `title` or `name`."""
    title: str = ""
    """Name above a plot; empty stands for `label` or `name`."""
    form: str = ".3g"
    """How a line shows it: a format of `format`, and a suffix behind a blank, as `.1f s`."""
    of_update: bool = False
    """Measured only where an optimizer step was made: without one it is not shown as zero."""

    @property
    def heading(self) -> str:
        """Return what a plot calls the metric."""
        return self.title or self.label or self.name

    def text(self, value: float) -> str:
        """Return `value` as a line shows it; a number that is not finite is `-`."""
        form, _, suffix = self.form.partition(" ")
        return f"{value:{form}}{suffix}" if math.isfinite(value) else NOT_MEASURED


NOT_MEASURED = "-"
"""Shown in place of a number that was not measured."""

_REASONS = {
    "zero_variance": "all rewards of the group were equal",
    "group_of_one": "the group had a single episode with a reward",
    "no_reward": "the episode has no reward (infrastructure failure)",
    "truncated": "the episode was truncated and `learner.mask_truncated` is set",
    "greedy": "the episode was sampled at temperature 0",
    "no_policy_tokens": "the episode has no token under the loss",
    "no_logprobs": "no sampled token has a logprob",
    "bad_logprobs": "a logprob is not one that sampling can give",
    "overlong": "the episode is longer than the model's context",
    "non_finite": "a logit, loss or gradient of its update was not finite",
}
"""Why the learner leaves an episode out of a step."""

_YIELDS = {
    "trial_yield": "gain in the chance of a correct answer per informative trial call",
    "trial_yield_any": "the same for any informative trial call against none",
}


def _rewards() -> Iterable[Metric]:
    yield Metric(
        name="reward_mean",
        unit="reward",
        meaning="Mean reward of the episodes that have one.",
        label="reward",
        form=".2f",
    )
    yield Metric(
        name="answer_mean",
        unit="share",
        meaning="Accuracy: mean score of the answers, before penalties.",
        label="accuracy",
        form=".2f",
    )
    yield Metric(
        name="trial_calls",
        unit="calls per episode",
        meaning="Mean number of trial calls.",
        label="trials",
        title="trial calls per episode",
        form=".1f",
    )
    yield Metric(
        name="informative_trials",
        unit="calls per episode",
        meaning="Mean number of trial calls that told the policy something new.",
    )
    for name, meaning in _YIELDS.items():
        gain = f"{meaning[0].upper()}{meaning[1:]}"
        yield Metric(name=name, unit="share per call", meaning=f"{gain}.")
        yield Metric(
            name=f"{name}_se", unit="share per call", meaning=f"Standard error of `{name}`."
        )
        yield Metric(
            name=f"{name}_groups", unit="groups", meaning=f"Groups that `{name}` is estimated from."
        )
    yield Metric(
        name="trial_cost_charged",
        unit="reward",
        meaning="Mean price of trial calls that was taken from the reward.",
    )
    yield Metric(
        name="trial_cost_payers", unit="share", meaning="Share of episodes that paid such a price."
    )
    yield Metric(name="advantage_size", unit="reward", meaning="Mean absolute advantage.")
    yield Metric(
        name="trial_advantage_size",
        unit="reward",
        meaning='Mean absolute advantage of trials under `learner.credit = "phase"`.',
    )


def _episodes() -> Iterable[Metric]:
    yield Metric(name="episodes", unit="episodes", meaning="Episodes of the step.", form=".0f")
    yield Metric(
        name="trained_episodes",
        unit="episodes",
        meaning="Episodes that the step trained on.",
        form=".0f",
    )
    yield Metric(
        name="dropped",
        unit="episodes",
        meaning="Episodes that the learner left out, for any reason.",
        label="dropped",
        form=".0f",
    )
    for reason, meaning in _REASONS.items():
        yield Metric(
            name=f"dropped_{reason}", unit="episodes", meaning=f"Left out because {meaning}."
        )
    yield Metric(
        name="staleness_mean",
        unit="versions",
        meaning="Policy versions by which the oldest token of an episode lags behind, on average.",
        title="staleness (versions)",
        form=".2f",
    )
    yield Metric(
        name="staleness_max",
        unit="versions",
        meaning="The same, of the most stale episode.",
        label="stale",
        form=".0f",
    )


def _updates() -> Iterable[Metric]:
    yield Metric(
        name="loss",
        unit="",
        meaning="Mean loss of an update.",
        label="loss",
        form=".3f",
        of_update=True,
    )
    yield Metric(
        name="grad_norm",
        unit="",
        meaning="Mean 2-norm of the gradient before clipping.",
        label="grad",
        title="gradient norm",
        form=".2f",
        of_update=True,
    )
    yield Metric(
        name="entropy",
        unit="nats per token",
        meaning="Mean entropy of the policy's next-token distribution.",
        label="entropy",
        title="entropy (nats per token)",
        form=".2f",
        of_update=True,
    )
    yield Metric(
        name="optimizer_steps",
        unit="steps",
        meaning="Updates of the weights in the step.",
        form=".0f",
    )
    yield Metric(
        name="lr", unit="", meaning="Learning rate of the last update.", label="lr", form=".1e"
    )


def _mismatch() -> Iterable[Metric]:
    for name, meaning in (
        ("clip_fraction", "Share of tokens whose ratio was clipped."),
        ("masked_fraction", "Share of tokens that a correction removed from the loss."),
        ("corrected_fraction", "Share of tokens whose importance weight was bounded."),
    ):
        yield Metric(name=name, unit="share", meaning=meaning, of_update=True)
    yield Metric(
        name="reference_kl",
        unit="nats per token",
        meaning="KL divergence to the reference policy (`learner.kl_coef`).",
        label="ref kl",
        title="KL to the reference",
        form=".1e",
        of_update=True,
    )
    yield Metric(
        name="mismatch_kl",
        unit="nats per token",
        meaning="KL divergence of sampler and trainer on the same tokens and weights.",
        label="mismatch",
        title="KL of sampler and trainer",
        form=".1e",
        of_update=True,
    )
    for name, meaning in (
        ("dlogp_mean", "Mean absolute difference of the sampler's and the trainer's logprobs."),
        ("dlogp_p99", "99th percentile of the same."),
    ):
        yield Metric(name=name, unit="nats", meaning=meaning, form=".1e", of_update=True)
    yield Metric(
        name="dlogp_max",
        unit="nats",
        meaning="Largest of the same.",
        label="|dlogp|max",
        form=".1e",
        of_update=True,
    )


def _sizes() -> Iterable[Metric]:
    yield Metric(name="tokens", unit="tokens", meaning="Tokens under the loss.", form=",.0f")
    yield Metric(
        name="sequence_tokens",
        unit="tokens",
        meaning="Tokens that went through the model, prompts and observations included.",
        form=",.0f",
    )
    yield Metric(
        name="sampled_tokens",
        unit="tokens",
        meaning="Tokens that the policy sampled in the episodes of the step.",
        form=",.0f",
    )
    yield Metric(
        name="unscored_tokens",
        unit="tokens",
        meaning="Sampled tokens of trained episodes without a logprob of the sampler.",
        form=",.0f",
    )
    yield Metric(name="step", unit="", meaning="Number of the step, from 1.", form=".0f")
    yield Metric(name="steps", unit="steps", meaning="Steps of the SFT in all.", form=".0f")
    yield Metric(
        name="skipped",
        unit="steps",
        meaning="SFT steps without an update because something was not finite.",
        form=".0f",
    )


def _times() -> Iterable[Metric]:
    yield Metric(
        name="seconds", unit="s", meaning="Time of the learner's computation.", form=".1f s"
    )
    yield Metric(
        name="collect_s",
        unit="s",
        meaning="Time that the step waited for its episodes.",
        label="collect",
        form=".1f s",
    )
    yield Metric(
        name="learn_s",
        unit="s",
        meaning="Time of the learner's step, checkpoint included.",
        label="learn",
        form=".1f s",
    )
    yield Metric(
        name="push_s",
        unit="s",
        meaning="Time to bring the new weights to the engines.",
        label="push",
        form=".2f s",
    )
    yield Metric(
        name="step_s", unit="s", meaning="Time of the whole step.", label="took", form=".1f s"
    )
    yield Metric(
        name="tokens_per_s",
        unit="tokens/s",
        meaning="`sequence_tokens` per second of the learner.",
        label="tok/s",
        form=",.0f",
    )
    yield Metric(
        name="sampled_tokens_per_s",
        unit="tokens/s",
        meaning="`sampled_tokens` per second of the whole step.",
        label="sampled tok/s",
        form=",.0f",
    )


def _fleet() -> Iterable[Metric]:
    yield Metric(
        name="workers",
        unit="workers",
        meaning="Healthy rollout workers at the end of the step.",
        label="workers",
        form=".0f",
    )
    yield Metric(
        name="worker_losses",
        unit="workers",
        meaning="Rollout workers lost since the job started.",
        label="lost",
        form=".0f",
    )


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for topic in (_rewards, _episodes, _updates, _mismatch, _sizes, _times, _fleet)
    for metric in topic()
}
"""The registry, by name."""

RL_LINE = (
    *("answer_mean", "reward_mean", "trial_calls", "entropy", "grad_norm", "mismatch_kl"),
    *("dlogp_max", "staleness_max", "step_s", "collect_s", "learn_s", "push_s"),
    *("sampled_tokens_per_s", "workers"),
)
"""Metrics in the line about a step of RL, in order."""
SFT_LINE = ("loss", "grad_norm", "lr", "tokens_per_s")
"""Metrics in the line about a step of SFT, in order."""
CURVES = (
    *("reward_mean", "answer_mean", "trial_calls", "mismatch_kl", "reference_kl", "entropy"),
    *("loss", "grad_norm", "staleness_mean"),
)
"""Metrics of training that are plotted; a run may lack some."""


def line_of(metrics: Mapping[str, float], shown: Sequence[str]) -> str:
    """Return `metrics` named in `shown`, labelled and formatted; what was not measured is `-`."""
    return "  ".join(
        f"{metric.label or metric.name} {_text(metric, metrics)}"
        for metric in (METRICS[name] for name in shown)
        if metric.name in metrics
    )


def _text(metric: Metric, metrics: Mapping[str, float]) -> str:
    if metric.of_update and metrics.get("optimizer_steps") == 0:
        return NOT_MEASURED
    return metric.text(metrics[metric.name])


def dropped_reasons(metrics: Mapping[str, float]) -> dict[str, int]:
    """Return how many episodes a step left out, by reason; the commonest first."""
    found = {reason: int(metrics.get(f"dropped_{reason}", 0.0)) for reason in _REASONS}
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    return {reason: count for reason, count in ordered if count}
