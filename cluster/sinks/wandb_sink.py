"""Metrics to Weights & Biases, or to its offline files in the run directory."""

from collections.abc import Mapping

from cluster.config.metrics_config import WandbSection
from cluster.sinks.sink import SinkRun
from envs.errors import ConfigError
from envs.late_imports import import_late

wandb = import_late("wandb")  # an extra: not every installation has it


def check_key(section: WandbSection) -> None:
    """Raise ConfigError where metrics are to be sent and there is no API key: the library would
    ask for one at the terminal.
    """
    if section.mode == "online" and not wandb.api.api_key:
        raise ConfigError(
            "metrics.sinks has 'wandb', and there is no API key: set WANDB_API_KEY, type `wandb "
            'login`, or set metrics.wandb.mode = "offline"'
        )


class WandbSink:
    """Logs each step under its own number, so that a resumed run may repeat steps."""

    def __init__(self, run: SinkRun, section: WandbSection) -> None:
        self._run = wandb.init(
            project=section.project,
            entity=section.entity or None,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.path),
            config=dict(run.config),
            mode=section.mode,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Finish the run there."""
        self._run.finish()
