"""SFT: the policy imitates episodes that succeeded."""

from pathlib import Path

import pyarrow as pa

from cluster.config import RunConfig
from cluster.learner_group import LearnerGroup, LearnerPlan
from envs.errors import ConfigError
from rollout.run_reader import RunReader


async def imitate(
    config: RunConfig, model: Path, table: pa.Table, out: Path
) -> list[dict[str, float]]:
    """Train the model on the policy turns of `table` and export it to `out`; returns metrics per
    step.
    """
    learner = LearnerGroup(LearnerPlan(config, str(model), config.sft))
    try:
        await learner.start()
        metrics = await learner.sft(table, config.run.seed)
        await learner.export(out)
    finally:
        await learner.close()
    return metrics


def successes_of(run: Path) -> pa.Table:
    """Return the episodes of a run whose answer was right. Raises ConfigError for none."""
    reader = RunReader(run)
    rows = [row for row in reader.episodes() if row.reward is not None and row.reward > 0.5]
    if not rows:
        raise ConfigError(f"no episode in {run} has a reward above 0.5: nothing to imitate")
    return pa.Table.from_batches([reader.batch(rows)])
