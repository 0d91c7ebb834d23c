"""The page Overview: charts of a run, and a sentence that names what holds it up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from cluster.dashboard.figures.metric_series import series_of
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.index.run_facts import Step
from cluster.dashboard.models.runs import Bottleneck, Chart, ChartLine, OutcomeCount
from cluster.metrics import METRICS, POPULATIONS

_LAST = 20
"""Steps that the sentence looks at."""
_BUCKETS = 60


@dataclass(frozen=True, slots=True)
class _Plan:
    id: str
    title: str
    unit: str
    names: tuple[str, ...]


_PLANS = (
    _Plan("reward", "Reward", "reward", ("reward", "trained_reward")),
    _Plan("success", "Success", "share", ("success", "trained_success")),
    _Plan("groups", "Groups that teach nothing", "groups",
          ("all_right_groups", "all_wrong_groups", "replaced_groups", "stale_groups")),
    _Plan("staleness", "Staleness", "versions", ("staleness_mean", "staleness_max")),
    _Plan("mismatch", "Mismatch of learner and sampler", "nats per token",
          ("mismatch", "mismatch_fresh", "mismatch_stale")),
    _Plan("speed", "Tokens per second", "tokens/s",
          ("sampled_tokens_per_s", "sequence_tokens_per_s")),
    _Plan("waits", "Seconds of a step", "s", ("collect_s", "learn_s", "push_s")),
    _Plan("yield", "Trial yield", "share per call", ("trial_yield", "trial_yield_any")),
    _Plan("trials", "Trial calls of an episode", "calls", ("trial_calls", "distinct_trials")),
    _Plan("loss", "Loss and gradient", "", ("loss", "grad_norm")),
)  # fmt: skip
_EMPTY = "The run has not recorded it."


def charts_of(steps: Sequence[Step], cursor: duckdb.DuckDBPyConnection | None) -> list[Chart]:
    """Return at most 12 charts; one of which nothing was recorded says so."""
    charts = [_chart(plan, steps) for plan in _PLANS]
    if cursor is not None:
        charts += [_success_by_split(cursor), _tool_errors(cursor)]
    return charts


def _chart(plan: _Plan, steps: Sequence[Step]) -> Chart:
    series = series_of(steps, plan.names)
    lines = [
        ChartLine(label=found.title, steps=found.steps, values=found.values) for found in series
    ]
    over = {METRICS[found.name].over for found in series if found.name in METRICS}
    note = " ".join(POPULATIONS[name] for name in sorted(over)) if series else _EMPTY
    return Chart(id=plan.id, title=plan.title, unit=plan.unit, note=note, lines=lines)


def _success_by_split(cursor: duckdb.DuckDBPyConnection) -> Chart:
    """Reward by split and mode: over stored episodes, by the version that sampled them."""
    found = rows_of(
        cursor,
        "SELECT split || ', ' || mode AS line, oldest_version, avg(reward) FROM episodes "
        "WHERE reward IS NOT NULL AND isfinite(reward) GROUP BY ALL ORDER BY 1, 2",
    )
    note = "Mean reward of the stored episodes, by the oldest policy version that sampled them."
    return Chart(
        id="by-split", title="Reward by split and mode", unit="reward",
        note=note if found else _EMPTY, lines=_lines(found),
    )  # fmt: skip


def _tool_errors(cursor: duckdb.DuckDBPyConnection) -> Chart:
    found = rows_of(
        cursor,
        "SELECT what, version, errors / calls FROM (SELECT unnest(['trials', 'execution']) AS "
        "what, e.oldest_version AS version, unnest([sum(d.trial_errors), "
        "sum(d.execution_errors)])::DOUBLE AS errors, unnest([sum(d.trial_calls), "
        "sum(d.execution_calls)])::DOUBLE AS calls FROM details d JOIN episodes e USING (uid) "
        "GROUP BY e.oldest_version) WHERE calls > 0 ORDER BY what, version",
    )
    note = "Tool errors and timeouts over calls, by the oldest policy version of the episode."
    return Chart(
        id="tool-errors", title="Tool errors", unit="share",
        note=note if found else _EMPTY, lines=_lines(found),
    )  # fmt: skip


def _lines(found: Sequence[tuple[str, int, float]]) -> list[ChartLine]:
    by_name: dict[str, list[tuple[int, float]]] = {}
    for name, version, value in found:
        by_name.setdefault(name, []).append((version, value))
    return [
        ChartLine(label=name, steps=[v for v, _ in points], values=[y for _, y in points])
        for name, points in list(by_name.items())[:8]
    ]


def outcomes_of(cursor: duckdb.DuckDBPyConnection) -> list[OutcomeCount]:
    """Count the stored episodes by outcome."""
    found = rows_of(
        cursor, "SELECT outcome, count(*) AS n FROM episodes GROUP BY outcome ORDER BY n DESC"
    )
    total = sum(count for _, count in found)
    return [
        OutcomeCount(outcome=outcome, count=count, share=count / total) for outcome, count in found
    ]


def bottleneck_of(steps: Sequence[Step], cursor: duckdb.DuckDBPyConnection | None) -> Bottleneck:
    """Say what the run's time goes to, of which time, and what to try."""
    last = [step.values for step in steps[-_LAST:] if "step_s" in step.values]
    total = sum(values["step_s"] for values in last)
    if not last or total <= 0:
        return Bottleneck(
            sentence="Nothing is known yet about where the time goes: no step has ended.",
            part="unknown", share=None, of="0 steps", fix="wait for the first step",
        )  # fmt: skip
    of = f"the {total:,.0f} s of the last {len(last)} steps"
    shares = {
        name: sum(values.get(f"{name}_s", 0.0) for values in last) / total
        for name in ("collect", "learn", "push")
    }
    part = max(shares, key=lambda name: shares[name])
    if shares[part] < 0.4:
        return _balanced(shares, of)
    return _named(part, shares[part], of, _parts_of_episodes(cursor))


def _balanced(shares: Mapping[str, float], of: str) -> Bottleneck:
    said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return Bottleneck(
        sentence=f"No part holds the run up alone: {said} of {of}.",
        part="balanced", share=max(shares.values()), of=of,
        fix="more of everything: workers and learner ranks together",
    )  # fmt: skip


def _named(part: str, share: float, of: str, episodes: Mapping[str, float]) -> Bottleneck:
    if part == "push":
        return Bottleneck(
            sentence=f"Weight pushes take {share:.0%} of {of}.", part="push", share=share, of=of,
            fix="train LoRA (model.lora), which pushes factors alone, or make larger steps",
        )  # fmt: skip
    if part == "learn":
        return Bottleneck(
            sentence=f"The learner takes {share:.0%} of {of}: workers wait for it.",
            part="learner", share=share, of=of,
            fix="more learner ranks, or fewer workers: trialrun scale RUN N",
        )  # fmt: skip
    inside = max(episodes, key=lambda name: episodes[name], default="")
    if inside == "tools" and episodes[inside] > 0.5:
        return Bottleneck(
            sentence=f"The learner waits for episodes in {share:.0%} of {of}, and tools take "
            f"{episodes[inside]:.0%} of the episodes' own time.",
            part="tools", share=share, of=of,
            fix="see the page Tools for the slow one; more servers: cluster.tool_servers_per_node",
        )  # fmt: skip
    if inside == "queue" and episodes[inside] > 0.3:
        return Bottleneck(
            sentence=f"The learner waits for episodes in {share:.0%} of {of}, and episodes wait "
            f"for the engine in {episodes[inside]:.0%} of their own time.",
            part="queue", share=share, of=of,
            fix="fewer episodes at once (rollouts.episodes_per_worker), or more workers",
        )  # fmt: skip
    return Bottleneck(
        sentence=f"The learner waits for episodes in {share:.0%} of {of}.",
        part="rollouts", share=share, of=of,
        fix="more workers: trialrun scale RUN N; or allow more staleness (rollouts.max_staleness)",
    )  # fmt: skip


def _parts_of_episodes(cursor: duckdb.DuckDBPyConnection | None) -> dict[str, float]:
    """Return the shares of the newest episodes' time that are tools, queue and generation."""
    if cursor is None:
        return {}
    wall, generate, tool, queue = rows_of(
        cursor,
        "SELECT sum(e.wall_s), sum(d.generate_s), sum(d.tool_s), sum(d.queue_s) FROM details d "
        "JOIN episodes e USING (uid) WHERE uid > (SELECT max(uid) - 5000 FROM episodes) "
        "AND isfinite(e.wall_s)",
    )[0]
    if not wall or wall <= 0:
        return {}
    found = {"generation": generate, "tools": tool, "queue": queue}
    return {name: (value or 0.0) / wall for name, value in found.items()}
