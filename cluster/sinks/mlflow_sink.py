"""Metrics to an MLflow tracking server or database."""

import time
from collections.abc import Iterator, Mapping

from cluster.config.metrics_config import MlflowSection
from cluster.sinks.sink import SinkRun
from envs.late_imports import import_late

# An extra: not every installation has it.
MlflowClient = import_late("mlflow").MlflowClient
Metric = import_late("mlflow.entities").Metric
Param = import_late("mlflow.entities").Param
_TAG = "trialrun.id"
_AT_ONCE = 100
_LONGEST = 500
"""Characters of a parameter's value."""


class MlflowSink:
    """Logs to the run with this run's tag, which the first process makes."""

    def __init__(self, run: SinkRun, section: MlflowSection) -> None:
        self._client = client = MlflowClient(section.tracking_uri)
        found = client.get_experiment_by_name(section.experiment)
        experiment = found.experiment_id if found else client.create_experiment(section.experiment)
        known = client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            return
        made = client.create_run(experiment, tags={_TAG: run.id}, run_name=run.name)
        self._id = made.info.run_id
        params = [Param(key, value[:_LONGEST]) for key, value in _flat(run.config)]
        for at in range(0, len(params), _AT_ONCE):
            client.log_batch(self._id, params=params[at : at + _AT_ONCE])

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step."""
        now = int(time.time() * 1000)
        rows = [Metric(name, value, now, step) for name, value in values.items()]
        for at in range(0, len(rows), _AT_ONCE):
            self._client.log_batch(self._id, metrics=rows[at : at + _AT_ONCE])

    def close(self) -> None:
        """Say that this process has ended."""
        self._client.set_terminated(self._id)


def _flat(tree: Mapping[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", str(value)
