"""Which sinks a recipe names: checked before a run starts, opened when it does."""

from contextlib import AbstractContextManager
from functools import partial

from cluster.config.metrics_config import MetricsSection, SinkName
from cluster.config.run_config import RunConfig
from cluster.sinks.sink import Open, SinkRun, Sinks, SinkThread, check_installed, opened
from envs.late_imports import import_late
from rollout.store.run_layout import RunLayout, read_run_info

_NEEDED: dict[SinkName, str] = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
}


def check_sinks(config: RunConfig) -> None:
    """Raise ConfigError where a sink's package or its API key is missing."""
    for name in config.metrics.sinks:
        check_installed(_NEEDED[name], name)
        if name == "wandb":
            import_late("cluster.sinks.wandb_sink").check_key(config.metrics.wandb)


def open_sinks(config: RunConfig, layout: RunLayout) -> AbstractContextManager[Sinks]:
    """Return the sinks of a run, which are open while the block lasts."""
    info = read_run_info(layout)
    run = SinkRun(
        name=info.run,
        id=f"{info.run}-{int(info.created_at * 1000):x}",
        path=layout.root,
        config=config.model_dump(mode="json"),
    )
    names = dict.fromkeys(config.metrics.sinks)
    return opened([SinkThread(name, _open(name, config.metrics), run) for name in names])


def _open(name: SinkName, section: MetricsSection) -> Open:
    match name:
        case "tensorboard":
            return import_late("cluster.sinks.tensorboard_sink").TensorboardSink
        case "wandb":
            sink = import_late("cluster.sinks.wandb_sink").WandbSink
            return partial(sink, section=section.wandb)
        case "mlflow":
            sink = import_late("cluster.sinks.mlflow_sink").MlflowSink
            return partial(sink, section=section.mlflow)
