"""A run whose steps are made up, as a program: `python -m tests.cluster.mirror.played_run`.

Arguments: the last step, tokens of an episode, and the recipe's overrides. It resumes a run.
"""

import sys
from collections.abc import Sequence

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.opening import Resume, open_run
from cluster.progress import Progress
from rollout.store.run_layout import RunKind
from tests.rollout.mirror.mirrored_run import go_on


def recipe(overrides: Sequence[str]) -> RunConfig:
    quick = ("mirror.interval_s=0.2", "mirror.lease_s=3", "mirror.final_wait_s=60")
    return load_config("catalog", ["run.name=first", "run.checkpoint_every=2", *quick, *overrides])


def play(config: RunConfig, until: int, tokens: int, resume: Resume = Resume.IF_PRESENT) -> None:
    with open_run(RunKind.TRAIN, config.path, config, resume, Progress()) as run:
        go_on(run, until, tokens=tokens)


if __name__ == "__main__":
    play(recipe(sys.argv[3:]), int(sys.argv[1]), int(sys.argv[2]))
