"""`[metrics]`: where a run's metrics go beside its own directory."""

from typing import Literal, Self

from pydantic import Field, model_validator

from envs.config import Section

SinkName = Literal["tensorboard", "wandb", "mlflow"]


class WandbSection(Section):
    """`[metrics.wandb]`: Weights & Biases."""

    project: str = Field(default="trialrun", min_length=1)
    """Project of the run."""
    entity: str = ""
    """User or team; empty takes that of the API key."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes files below the run directory, which `wandb sync` sends later; `online`
    needs an API key (WANDB_API_KEY or `wandb login`)."""


class MlflowSection(Section):
    """`[metrics.mlflow]`: MLflow."""

    tracking_uri: str = ""
    """Address of the server; needed if `mlflow` is among the sinks. A database, such as
    `sqlite:///FILE`, needs all of MLflow: `pip install mlflow`."""
    experiment: str = Field(default="trialrun", min_length=1)
    """Name of the experiment; it is made where there is none."""


class MetricsSection(Section):
    """`[metrics]`: sinks of the metrics of `train` and `sft`; `metrics/` always has them."""

    sinks: tuple[SinkName, ...] = ()
    """Where metrics go too: `tensorboard`, `wandb`, `mlflow`. Each needs the extra of its name."""
    wandb: WandbSection = WandbSection()
    mlflow: MlflowSection = MlflowSection()

    @model_validator(mode="after")
    def _mlflow_has_a_place(self) -> Self:
        if "mlflow" in self.sinks and not self.mlflow.tracking_uri:
            raise ValueError(
                "metrics.sinks has 'mlflow', and metrics.mlflow.tracking_uri is empty: set it to "
                "the address of the server, such as http://HOST:5000"
            )
        return self
