"""Drive a run from Python: collect a teacher's episodes on a CPU, then read the run directory.

Run it from the root of the repository: python examples/drive_a_run.py
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.config.run_config import load_config
from cluster.teachers.collect import run_collect
from rollout.store.run_reader import RunReader
from rollout.transcript import render

TASKS = 10


def main() -> None:
    """Collect `TASKS` episodes of the scripted teacher and print how they ended."""
    # A recipe, with the same overrides that the command line takes.
    config = load_config("catalog", [f"collect.tasks={TASKS}", "collect.source=scripted"])
    with tempfile.TemporaryDirectory(prefix="trialrun-example-") as folder:
        out = Path(folder) / "run"
        # The same as `trialrun collect catalog --set collect.tasks=10 --out RUN`.
        run_collect(config, out, resume=False)

        # Everything else only reads the run directory, during the run or after it.
        reader = RunReader(out)
        rows = reader.last_attempts()
        print(f"{len(rows)} episodes: {dict(Counter(row.outcome for row in rows))}")
        for row in rows:
            reward = "-" if row.reward is None else f"{row.reward:.2f}"
            print(f"  {row.episode}  {row.task}  reward {reward}  {row.tokens} tokens")
        print(render(reader.episode(rows[0].episode)))


if __name__ == "__main__":
    main()
