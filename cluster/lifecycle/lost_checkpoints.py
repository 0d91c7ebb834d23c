"""Whether a run that is resumed still has the checkpoints that it must have written."""

from cluster.config.run_config import RunConfig
from cluster.lifecycle.retention import newest_checkpoint
from envs.errors import StoreError
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import RunReader


def check_checkpoints(kind: RunKind, layout: RunLayout, before: RunConfig, instead: str) -> None:
    """Raise StoreError where a training run recorded steps but its checkpoints are not there.

    It would start again at step 1 from the initial model. A run that was stopped before its first
    checkpoint was due may do so. `before` is the recipe that the run had.
    """
    every = {
        RunKind.TRAIN: before.run.checkpoint_every,
        RunKind.SFT: before.sft.checkpoint_every,
    }.get(kind)
    if every is None or (kind is RunKind.SFT and layout.model.exists()):  # that one is complete
        return
    last = max((row.step for row in RunReader(layout.root).metrics()), default=0)
    due = last // every * every  # a step's metrics are recorded after its checkpoint
    if due and newest_checkpoint(layout.checkpoints) is None:
        raise StoreError(
            f"expected a checkpoint of step {due} in {layout.checkpoints}, found none, though "
            f"{last} steps were trained: it may have been written on another machine, if the path "
            "was relative. Copy the folder of the newest checkpoint there, or start again: "
            f"{instead}"
        )
