"""The stages of a seed, as the recipe's models and arms make them; none of them works here."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.config.run_config import load_config
from cluster.lifecycle.inputs import Environments
from cluster.lifecycle.opening import new_run
from cluster.progress import Progress
from cluster.study.eval_pool import EvalPool
from cluster.study.graph import Stage, StageGraph
from cluster.study.recipe import Study, load_study
from cluster.study.stages import SeedContext, is_attempt, seed_stages, tokens_of
from cluster.study.study import collect, run_study
from envs.errors import ConfigError
from rollout.store.run_layout import RunKind

MODELS = ("direct", "direct-copy", "trial-sft", "trial-grpo", "grpo-no-trial-tokens")


def stages_of(study: Study, root: Path) -> dict[str, Stage]:
    pool = EvalPool(study.config, root / "pool")
    seed = SeedContext(root, pool, Environments(), Progress(quiet=True))
    stages = seed_stages(study, seed)
    return {stage.key: stage for stage in stages}


def digests(study: Study) -> dict[str, str]:
    stages = list(stages_of(study, Path("nowhere")).values())
    return dict(StageGraph(Path("nowhere"), stages, 2).digests)


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study("study")


def test_models_come_first_and_each_is_made_once(study: Study, tmp_path: Path) -> None:
    stages = stages_of(study, tmp_path)
    models = [key for key in stages if key.startswith("models/")]
    assert list(stages)[: len(models)] == models
    assert set(models) == {f"models/{name}" for name in (*MODELS, "trial-more-sft")}
    assert stages["models/trial-more-sft"].needs == ("models/trial-sft", "models/trial-grpo")
    assert stages["models/grpo-no-trial-tokens"].needs == ("models/trial-sft",)
    assert len(stages) - len(models) == (
        len(study.section.arms) * len(study.section.settings) * len(study.section.temperatures)
    )


def test_evaluations_of_one_model_are_in_a_row_and_after_all_models(
    study: Study, tmp_path: Path
) -> None:
    played = [s for key, s in stages_of(study, tmp_path).items() if key.startswith("evals/")]
    needs = [stage.needs[0] for stage in played]
    assert sum(a != b for a, b in pairwise(needs)) == len(set(needs)) - 1
    assert all(set(stage.after) >= set(needs) for stage in played)
    assert all(stage.slots == study.section.slots for stage in played), "they share one pool"


def test_a_second_imitation_draws_lessons_of_its_own_and_grpo_keeps_the_seed(
    study: Study, tmp_path: Path
) -> None:
    def seed_of(key: str) -> object:
        inputs = stages_of(study, tmp_path)[key].inputs
        assert isinstance(inputs, dict) and isinstance(inputs["recipe"], dict)
        run = inputs["recipe"]["run"]
        assert isinstance(run, dict)
        return run["seed"]

    assert seed_of("models/trial-sft") == seed_of("models/trial-grpo") == study.config.run.seed
    assert seed_of("models/trial-more-sft") != study.config.run.seed


def test_a_new_arm_or_setting_repeats_no_finished_stage(study: Study) -> None:
    larger = load_study(
        "study",
        [
            "study.arms.shy={title = 'few trials', model = 'trial-grpo', "
            "changes.episode.trial.calls = 2}",
            "study.settings.seven.env.catalog.tools=7",
        ],
    )
    assert digests(study).items() <= digests(larger).items()
    assert "evals/shy/seven/greedy" in digests(larger)


def test_a_longer_reinforcement_repeats_no_imitation(study: Study) -> None:
    before, after = digests(study), digests(load_study("study", ["run.steps=61"]))
    changed = {key.split("/")[1] for key in before if before[key] != after[key]}
    assert changed == {
        *("trial-grpo", "trial-more-sft", "grpo-no-trial-tokens", "no-experience"),
    }
    unimportant = ["run.checkpoint_every=7", "sft.checkpoint_every=7", "run.dir=elsewhere"]
    saved = digests(load_study("study", unimportant))
    assert saved == before


def test_where_nothing_is_finished_there_is_nothing_to_report(study: Study, tmp_path: Path) -> None:
    report = collect(study, [11, 12], tmp_path)
    assert (report.seeds, report.rows, report.differences) == ([], [], [])


def test_the_ceiling_of_tasks_that_no_generator_draws_is_refused(tmp_path: Path) -> None:
    study = load_study("study", ["env.name=file"])
    with pytest.raises(ConfigError, match=r"no ceiling is known for env\.name = 'file'"):
        run_study(study, [1], tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "goes_on"),
    [
        ("grpo", "run.checkpoint_every=1", True),
        ("grpo", "sft.lr=0.5", True),
        ("grpo", "learner.lr=0.5", False),
        ("grpo", "rollouts.group_size=4", False),
        ("sft", "sft.checkpoint_every=1", True),
        ("sft", "learner.lr=0.5", True),
        ("sft", "sft.lr=0.5", False),
        ("sft", "run.seed=77", False),
    ],
)
def test_a_killed_attempt_goes_on_where_it_ends_in_the_same_model(
    tmp_path: Path, kind: str, change: str, *, goes_on: bool
) -> None:
    path = tmp_path / "attempt"
    assert not is_attempt(path, load_config("catalog"), kind)
    new_run(path, load_config("catalog"), RunKind.TRAIN).close()
    assert is_attempt(path, load_config("catalog"), kind)
    assert is_attempt(path, load_config("catalog", [change]), kind) is goes_on


def test_tokens_are_those_of_all_episodes() -> None:
    table = pa.table({"token_ids": pa.array([[1, 2, 3], [4], []])})
    assert tokens_of(table) == 4


def test_replay_finds_what_the_evaluation_pool_recorded(tmp_path: Path) -> None:
    config = load_config("study", ["tools.record=true"])
    pool = EvalPool(config, tmp_path / "pool")
    folder = (tmp_path / "pool" / "tool_traffic").resolve()
    assert pool.recording(config).tools.record_dir == str(folder)
    silent = load_config("study")
    assert pool.recording(silent) == silent
