"""Every metric that a training step records in `metrics/`: unit, meaning, over what, and averaging.

A number of which nothing was measured is NaN, stored as null, shown as `-` and absent from plots.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PLAYED = "played"
GIVEN = "given"
COMPARED = "compared"
TRAINED = "trained"
START = "start tokens"
SEEN = "seen tokens"
UPDATES = "updates"
STEP = "step"

POPULATIONS: Mapping[str, str] = {
    PLAYED: "Every group that the step played to its end, and its episodes with a reward, whatever "
    "became of them: trained on, replaced because all rewards are equal, dropped as too old or "
    "because nothing was sampled, left out by the learner (also as longer than the context). Not "
    "in it: groups of which fewer than two episodes count (infrastructure failures, prompts "
    "without room), which end before they are complete. After a resume the groups that an earlier "
    "process dropped for the step are counted too, each once.",
    GIVEN: "Episodes that the step took and gave to the learner.",
    COMPARED: "Given episodes with a reward that the learner compares: not those that this policy "
    "cannot have sampled or that are longer than the context.",
    TRAINED: "Given episodes that at least one update of the step trained on.",
    START: "Tokens under the loss, each once, scored with the weights at the start of the step. In "
    "a step of one update only those of that update; with more, also those of updates that failed.",
    SEEN: "Tokens under the loss of every update that was made: a token counts once per update "
    "that saw it.",
    UPDATES: "Updates of the weights that the step made.",
    STEP: "The step itself.",
}
"""What numbers are taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that a step records under `name`."""

    name: str
    unit: str
    over: str
    """What it is taken over: a key of POPULATIONS."""
    averaging: str
    """How one number is made of them: `mean`, `sum`, `count`, `maximum`, ..."""
    meaning: str
    before: str = ""
    """Name under which older versions recorded the same number."""
    label: str = ""
    """Name in a line about a step; empty stands for `title` or `name`."""
    title: str = ""
    """Name above a plot; empty stands for `label`, or for the words of `name`."""
    form: str = ".3g"
    """How a line shows it: a format of `format`, and a suffix behind a blank, as `.1f s`."""

    @property
    def heading(self) -> str:
        """Return what a plot calls the metric."""
        return self.title or self.label or self.name.replace("_", " ")

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
    "trial_yield": "Gain in the chance of a correct answer per distinct trial call.",
    "trial_yield_any": "The same for any trial call against none.",
}


def _metric(name: str, unit: str, over: str, averaging: str, meaning: str, **shown: str) -> Metric:
    return Metric(name=name, unit=unit, over=over, averaging=averaging, meaning=meaning, **shown)


def _played() -> Iterable[Metric]:
    about = "Answers' mean score before penalties, as in an evaluation."
    yield _metric("success", "share", PLAYED, "mean", about, label="success", form=".2f")
    about = "Reward of an episode, before what the learner subtracts."
    yield _metric("reward", "reward", PLAYED, "mean", about, label="reward", form=".2f")
    yield _metric("played_groups", "groups", PLAYED, "count", "Groups played.", form=".0f")
    about = "Episodes played that have a reward: the weight of the step in a mean over steps."
    yield _metric("played_episodes", "episodes", PLAYED, "count", about, form=".0f")
    about = "Groups that were replaced because their rewards do not differ (dynamic sampling)."
    shown = {"label": "replaced", "title": "groups replaced (equal rewards)", "form": ".0f"}
    yield _metric("replaced_groups", "groups", PLAYED, "count", about, **shown)
    about = "Groups that were dropped because they arrived too old (`rollouts.max_staleness`)."
    shown = {"title": "groups dropped as too old", "form": ".0f"}
    yield _metric("stale_groups", "groups", PLAYED, "count", about, **shown)
    about = "Share of groups whose rewards are all equal: nothing can be learned from them."
    shown = {"label": "equal", "title": "share of groups with equal rewards", "form": ".0%"}
    yield _metric("zero_variance", "share", PLAYED, "mean", about, **shown)
    about = "Share of episodes that were cut off at a limit of tokens, turns or the context."
    shown = {"label": "truncated", "title": "share of truncated episodes", "form": ".0%"}
    yield _metric("truncated", "share", PLAYED, "mean", about, **shown)
    about = "Groups of which every episode is right: its answer is worth more than 0.5."
    shown = {"title": "groups with every answer right", "form": ".0f"}
    yield _metric("all_right_groups", "groups", PLAYED, "count", about, **shown)
    about = "Groups of which no episode is right."
    shown = {"title": "groups with no answer right", "form": ".0f"}
    yield _metric("all_wrong_groups", "groups", PLAYED, "count", about, **shown)
    about = "Trial calls of an episode."
    shown = {"label": "trials", "title": "trial calls per episode", "form": ".1f"}
    yield _metric("trial_calls", "calls per episode", PLAYED, "mean", about, **shown)
    about = "Trial calls of an episode whose name and arguments are new in it."
    yield _metric("distinct_trials", "calls per episode", PLAYED, "mean", about)
    for name, about in _YIELDS.items():
        how = "slopes within groups, pooled by their precision"
        yield _metric(name, "share per call", PLAYED, how, about)
        about = f"Standard error (HC3) of `{name}`."
        yield _metric(f"{name}_se", "share per call", PLAYED, "standard error", about)
        about = f"Groups in which the calls differ, from which `{name}` is estimated."
        yield _metric(f"{name}_groups", "groups", PLAYED, "count", about)
    about = "Tokens that the policy sampled."
    yield _metric("sampled_tokens", "tokens", PLAYED, "sum", about, form=",.0f")


def _given() -> Iterable[Metric]:
    about = "Episodes given to the learner."
    yield _metric("episodes", "episodes", GIVEN, "count", about, form=".0f")
    about = "Episodes trained on."
    yield _metric("trained_episodes", "episodes", TRAINED, "count", about, form=".0f")
    about = "`success` of what was trained on: dynamic sampling moves it towards one half."
    shown = {"label": "trained on", "title": "success of what was trained on", "form": ".2f"}
    yield _metric("trained_success", "share", TRAINED, "mean", about, **shown)
    about = "`reward` of what was trained on."
    shown = {"title": "reward of what was trained on", "form": ".2f"}
    yield _metric("trained_reward", "reward", TRAINED, "mean", about, **shown)
    about = "Episodes that the learner left out, for any reason."
    yield _metric("dropped", "episodes", GIVEN, "count", about, label="dropped", form=".0f")
    for reason, meaning in _REASONS.items():
        about = f"Left out because {meaning}."
        yield _metric(f"dropped_{reason}", "episodes", GIVEN, "count", about)
    about = (
        "Policy versions by which the oldest token of an episode lags behind; episodes without a "
    )
    about += "sampled token do not count."
    shown = {"title": "staleness (versions)", "form": ".2f"}
    yield _metric("staleness_mean", "versions", GIVEN, "mean", about, **shown)
    shown = {"label": "stale", "title": "largest staleness (versions)", "form": ".0f"}
    yield _metric("staleness_max", "versions", GIVEN, "maximum", about, **shown)
    about = "Price of trial calls that the learner subtracted from the reward."
    yield _metric("trial_cost_charged", "reward", COMPARED, "mean", about)
    about = "Share of episodes that paid such a price."
    yield _metric("trial_cost_payers", "share", COMPARED, "mean", about)
    about = "Absolute advantage; episodes without one, as of groups that do not vary, do not count."
    yield _metric("advantage_size", "reward", COMPARED, "mean", about)
    about = 'The same of trials under `learner.credit = "phase"`.'
    yield _metric("trial_advantage_size", "reward", COMPARED, "mean", about)


def _updates() -> Iterable[Metric]:
    about, shown = "Loss of an update.", {"label": "loss", "form": ".3f"}
    yield _metric("loss", "", UPDATES, "mean", about, **shown)
    about = "2-norm of an update's gradient before clipping."
    shown = {"label": "grad", "title": "gradient norm", "form": ".2f"}
    yield _metric("grad_norm", "", UPDATES, "mean", about, **shown)
    about = "Updates of the weights in the step."
    yield _metric("optimizer_steps", "updates", UPDATES, "count", about, form=".0f")
    yield _metric("lr", "", UPDATES, "last", "Learning rate.", label="lr", form=".1e")
    about = "Share of tokens whose ratio was clipped."
    yield _metric("clip_fraction", "share", SEEN, "mean", about)
    about = "Share of tokens that an off-policy mask removed from the loss."
    yield _metric("masked_fraction", "share", SEEN, "mean", about)
    about = "Share of tokens whose importance weight was bounded."
    yield _metric("corrected_fraction", "share", SEEN, "mean", about)
    about = "Divergence from the reference policy by `learner.kl_estimator`, whatever the weights, "
    about += "the masks, the aggregation and `learner.kl_unbiased`. Measured only with "
    about += "`learner.kl_coef`."
    shown = {"label": "ref kl", "title": "KL to reference (nats per token)", "form": ".1e"}
    yield _metric("reference_kl", "nats per token", SEEN, "mean", about, **shown)


def _start() -> Iterable[Metric]:
    about = "Entropy of the policy's next-token distribution at the start of the step."
    shown = {"before": "entropy", "label": "entropy", "form": ".2f"}
    title = "entropy at start (nats per token)"
    yield _metric("start_entropy", "nats per token", START, "mean", about, title=title, **shown)
    about = (
        "How far the learner's logprobs are from the sampler's: k3 of log p - log mu. It has the "
    )
    about += "steps in it that the policy made since the token was sampled; see the next two."
    shown = {"before": "mismatch_kl", "label": "mismatch", "form": ".1e"}
    title = "mismatch (nats per token)"
    yield _metric("mismatch", "nats per token", START, "mean", about, title=title, **shown)
    about = "The same of tokens sampled with the very weights that the step starts from: the "
    about += "engine's part."
    shown = {
        "label": "of it fresh",
        "title": "mismatch of fresh tokens",
        "form": ".1e",
    }
    yield _metric("mismatch_fresh", "nats per token", START, "mean", about, **shown)
    about = "The same of older tokens."
    shown = {"title": "mismatch of older tokens", "form": ".1e"}
    yield _metric("mismatch_stale", "nats per token", START, "mean", about, **shown)
    about = "Absolute difference of the learner's and the sampler's logprob."
    shown = {"before": "dlogp_mean", "form": ".1e"}
    yield _metric("abs_dlogp_mean", "nats", START, "mean", about, **shown)
    shown = {"before": "dlogp_p99", "form": ".1e"}
    yield _metric("abs_dlogp_p99", "nats", START, "99th percentile", about, **shown)
    shown = {"before": "dlogp_max", "label": "|dlogp|max", "form": ".1e"}
    yield _metric("abs_dlogp_max", "nats", START, "maximum", about, **shown)


def _sizes() -> Iterable[Metric]:
    about = "Tokens under the loss; one that several updates saw counts once."
    shown = {"before": "tokens", "form": ",.0f"}
    yield _metric("loss_tokens", "tokens", TRAINED, "sum", about, **shown)
    about = "Tokens of the episodes, prompts and observations included."
    yield _metric("sequence_tokens", "tokens", TRAINED, "sum", about, form=",.0f")
    about = "Sampled tokens without a logprob of the sampler, of episodes selected for training."
    yield _metric("unscored_tokens", "tokens", GIVEN, "sum", about, form=",.0f")
    yield _metric("step", "", STEP, "last", "Number of the step, from 1.", form=".0f")
    yield _metric("steps", "steps", STEP, "last", "Steps of the SFT in all.", form=".0f")
    about = "SFT steps so far without an update because something was not finite."
    yield _metric("skipped", "steps", STEP, "count", about, form=".0f")
    about = "Hash of the weights that were pushed to the engines."
    yield _metric("pushed_weights_digest", "hash", STEP, "last", about, form=".0f")
    about = "Hash of every tensor of the whole model; only where it was asked for."
    yield _metric("weights_digest", "hash", STEP, "last", about, form=".0f")


def _times() -> Iterable[Metric]:
    def seconds(name: str, about: str, label: str = "", form: str = ".1f s") -> Metric:
        return _metric(name, "s", STEP, "sum", about, label=label, form=form)

    yield seconds("seconds", "Time of the learner's computation.")
    yield seconds("collect_s", "Time that the step waited for its episodes.", "collect")
    yield seconds("learn_s", "Time of the learner's step, checkpoint included.", "learn")
    yield seconds("push_s", "Time to bring the new weights to the engines.", "push", ".2f s")
    yield seconds("step_s", "Time of the whole step.", "took")
    about = "`sequence_tokens` divided by `seconds`."
    shown = {"before": "tokens_per_s", "label": "tok/s", "form": ",.0f"}
    yield _metric("sequence_tokens_per_s", "tokens/s", TRAINED, "ratio", about, **shown)
    about = "`sampled_tokens` divided by `step_s`."
    shown = {"label": "sampled tok/s", "form": ",.0f"}
    yield _metric("sampled_tokens_per_s", "tokens/s", PLAYED, "ratio", about, **shown)
    about = "Healthy rollout workers at the end of the step."
    yield _metric("workers", "workers", STEP, "count", about, label="workers", form=".0f")
    about = "Rollout workers lost since the job started."
    yield _metric("worker_losses", "workers", STEP, "count", about, label="lost", form=".0f")
    about = "How late the driver's event loop was in the step: how long an answer that arrived at "
    about += "a random moment waited. Half of the moments were not later."
    yield _metric("loop_lag_p50_s", "s", STEP, "median", about, form=".3f s")
    about = "The same of all but the worst hundredth of the moments."
    shown = {"label": "driver lag", "title": "driver's loop lag p99 (s)", "form": ".2f s"}
    yield _metric("loop_lag_p99_s", "s", STEP, "99th percentile", about, **shown)
    about = "Time without any progress beyond `run.stall_after_s`: the longest of the step."
    yield _metric("stalled_s", "s", STEP, "maximum", about, form=".0f s")
    about = "The longest time in the step for which the driver's event loop stood still."
    yield _metric("loop_lag_max_s", "s", STEP, "maximum", about, form=".2f s")


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for topic in (_played, _given, _updates, _start, _sizes, _times)
    for metric in topic()
}
"""The registry, by name."""

RL_LINE = (
    *("success", "reward", "trained_success", "replaced_groups", "zero_variance", "truncated"),
    *("trial_calls", "start_entropy", "grad_norm", "mismatch", "mismatch_fresh"),
    *("abs_dlogp_max", "staleness_max", "step_s", "collect_s", "learn_s", "push_s"),
    *("sampled_tokens_per_s", "workers"),
)
"""Metrics in the line about a step of RL, in order."""
SFT_LINE = ("loss", "grad_norm", "lr", "sequence_tokens_per_s")
"""Metrics in the line about a step of SFT, in order."""
CURVES = (
    *("success", "reward", "trained_success", "replaced_groups", "zero_variance", "truncated"),
    *(
        "trial_calls",
        "mismatch",
        "mismatch_fresh",
        "mismatch_stale",
        "reference_kl",
        "start_entropy",
    ),
    *("loss", "grad_norm", "staleness_mean"),
)
"""Metrics of training that are plotted; a run may lack some."""


def line_of(metrics: Mapping[str, float], shown: Sequence[str]) -> str:
    """Return `metrics` named in `shown`, labelled and formatted; what was not measured is `-`."""
    return "  ".join(
        f"{metric.label or metric.name} {metric.text(metrics[metric.name])}"
        for metric in (METRICS[name] for name in shown)
        if metric.name in metrics
    )


def dropped_reasons(metrics: Mapping[str, float]) -> dict[str, int]:
    """Return how many episodes a step left out, by reason; the commonest first."""
    found = {reason: int(metrics.get(f"dropped_{reason}", 0.0)) for reason in _REASONS}
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    return {reason: count for reason, count in ordered if count}
