"""`/metrics` for Prometheus: the newest figures of every run, with the run as a label."""

from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.dashboard.api.context import LibraryDep
from cluster.dashboard.index.library import KnownRun
from cluster.metrics import METRICS

router = APIRouter(tags=["metrics"])

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_SHOWN = (
    *("reward", "success", "trained_reward", "loss", "grad_norm", "mismatch", "start_entropy"),
    *("staleness_mean", "staleness_max", "sampled_tokens_per_s", "sequence_tokens_per_s"),
    *("workers", "worker_losses", "step_s", "collect_s", "learn_s", "push_s", "trial_calls"),
    *("replaced_groups", "stale_groups", "loop_lag_p99_s"),
)


class _Runs(Collector):
    def __init__(self, runs: Iterable[KnownRun]) -> None:
        self._runs = list(runs)

    def collect(self) -> Iterator[Metric]:
        """Yield one family per figure."""
        names = ["run", "name"]
        step = GaugeMetricFamily("trialrun_step", "Newest step.", labels=names)
        running = GaugeMetricFamily("trialrun_running", "1 while a job writes.", labels=names)
        families = {
            name: GaugeMetricFamily(f"trialrun_{name}", METRICS[name].meaning, labels=names)
            for name in _SHOWN
        }
        outcomes = GaugeMetricFamily(
            "trialrun_episodes", "Stored episodes by outcome.", labels=[*names, "outcome"]
        )
        for run in self._runs:
            labels = [run.id, run.name]
            steps = run.facts.steps()
            running.add_metric(labels, float(run.facts.is_written()))
            step.add_metric(labels, float(steps[-1].step if steps else 0))
            for name, family in families.items():
                if steps and name in steps[-1].values:
                    family.add_metric(labels, steps[-1].values[name])
            if run.index is not None and run.index.loaded.is_set():
                counted = run.index.rows("SELECT outcome, count(*) FROM episodes GROUP BY outcome")
                for outcome, count in counted:
                    outcomes.add_metric([*labels, outcome], float(count))
        yield from (step, running, outcomes, *families.values())


@router.get("/metrics", response_class=Response, responses={200: {"content": {_TEXT: {}}}})
def prometheus(library: LibraryDep) -> Response:
    """Return the newest figures; outcomes only of runs that the dashboard has open."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Runs(library.runs()))
    return Response(generate_latest(registry), media_type=_TEXT)
