"""What may differ where a run is resumed, and what a run resumed with other settings records."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.opening import Resume, check_run, new_run, open_run
from cluster.lifecycle.resume_check import differences
from cluster.lifecycle.resume_rules import RULES, check_unchanged
from cluster.progress import Progress
from envs.errors import ConfigError
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind, RunLayout

UNSET = RunConfig.model_construct(**dict.fromkeys(RunConfig.model_fields))


def recipe(folder: Path, *overrides: str) -> RunConfig:
    return load_config("catalog", [f"run.dir={folder}", "run.name=first", *overrides])


def with_work(config: RunConfig) -> RunDirectory:
    """Return a new training run that has recorded a step."""
    run = new_run(config.path, config, RunKind.TRAIN)
    run.record_metrics(1, {"loss": 0.5})
    return run


def resumed(config: RunConfig) -> RunDirectory:
    return open_run(RunKind.TRAIN, config.path, config, Resume.REQUIRED, Progress())


def test_every_key_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    before, now = recipe(tmp_path), recipe(tmp_path, "learner.lr=0.5", "env.catalog.depths={2=1.0}")
    assert differences(before, before) == []
    assert sorted(differences(before, now)) == [
        "env.catalog.depths.1 was 1.0, is unset",
        "env.catalog.depths.2 was unset, is 1.0",
        f"learner.lr was {before.learner.lr}, is 0.5",
    ]
    assert differences(before, now, ["learner"]) == differences(before, now, but=["env"])
    assert differences(before, now, ["learn", "run", "learner.lr_"]) == []


def test_a_refusal_lists_every_difference_with_its_reason(tmp_path: Path) -> None:
    now = recipe(tmp_path, "run.seed=7", "learner.ranks=3", "learner.lr=0.5")
    with pytest.raises(ConfigError) as refusal:
        check_unchanged(RunKind.TRAIN, "the run in r", recipe(tmp_path), now, "start another")
    message = str(refusal.value)
    assert message.startswith("the run in r was started with other settings (run.seed was ")
    assert "; learner.ranks was " in message and "one part per rank" in message
    assert "learner.lr" not in message
    assert message.endswith("): resume with the same ones, or start another")


def test_every_rule_names_keys_that_exist() -> None:
    keys = {line.split(" was ")[0] for line in differences(RunConfig(), UNSET)}
    for rule in RULES:
        for name in (*rule.keys, *rule.but):
            assert any(key == name or key.startswith(f"{name}.") for key in keys), name


@pytest.mark.parametrize(
    ("kind", "change", "allowed"),
    [
        (RunKind.TRAIN, "run.deterministic=true", False),
        (RunKind.TRAIN, "rollouts.groups_per_step=3", True),
        (RunKind.TRAIN, "tools.call_timeout_s=9", True),
        (RunKind.SFT, "sft.checkpoint_every=1", True),
        (RunKind.SFT, "teacher.concurrency=3", True),
        (RunKind.SFT, "teacher.episodes=3", False),
        (RunKind.COLLECT, "collect.tasks=9", True),
        (RunKind.COLLECT, "collect.samples=9", False),
        (RunKind.COLLECT, "collect.endpoint.model=b", True),
        (RunKind.EVAL, "eval.by=['depth']", True),
        (RunKind.EVAL, "eval.tasks=3", False),
        (RunKind.EVAL, "tools.record=true", True),
        (RunKind.EVAL, "tools.session_cpu_s=3", False),
        (RunKind.TEACHER, "env.catalog.tools=2", False),
    ],
)
def test_what_may_change_depends_on_the_kind(
    tmp_path: Path, kind: RunKind, change: str, *, allowed: bool
) -> None:
    before, now = recipe(tmp_path), recipe(tmp_path, change)
    with nullcontext() if allowed else pytest.raises(ConfigError, match="other settings"):
        check_unchanged(kind, "it", before, now, "start another")


def test_rounds_keep_their_ranges_of_group_numbers(tmp_path: Path) -> None:
    before = recipe(tmp_path, "run.deterministic=true")
    now = recipe(tmp_path, "run.deterministic=true", "rollouts.max_refills=99")
    with pytest.raises(ConfigError, match="its own range of group numbers"):
        check_unchanged(RunKind.TRAIN, "it", before, now, "start another")


@pytest.mark.parametrize(
    "change",
    [
        "model.path=elsewhere",
        "env.perturbation=heavy",
        "episode.temperature=0.5",
        "run.seed=7",
        "rollouts.group_size=4",
        "learner.ranks=3",
        "learner.zero_stage=3",
        "learner.betas=[0.8, 0.9]",
    ],
)
def test_training_resumes_with_the_same_tasks_episodes_and_optimizer(
    tmp_path: Path, change: str
) -> None:
    config, now = recipe(tmp_path), recipe(tmp_path, change)
    assert now != config
    key = change.partition("=")[0].replace(".", r"\.")
    with_work(config).close()
    with pytest.raises(ConfigError, match=rf"other settings \({key} was .*same ones, or choose"):
        check_run(RunKind.TRAIN, config.path, now, Resume.REQUIRED)


def test_other_changes_are_logged_and_recorded_for_their_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = recipe(tmp_path, "run.steps=4")
    then = recipe(tmp_path, "run.steps=8", "learner.lr=0.5")
    last = recipe(tmp_path, "run.steps=9", "learner.lr=0.25")
    with_work(first).close()
    for config, step in ((then, 4), (last, 4), (last, 8), (then, 8)):
        checkpoint = first.path / "checkpoints" / f"{step:06d}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "complete").touch()
        resumed(config).close()
    layout = RunLayout(first.path)
    used = {step: load_config(str(layout.config_of(step))) for step in (1, 4, 5, 8, 9)}
    assert used == {1: first, 4: first, 5: last, 8: last, 9: then}
    shown = " ".join(capsys.readouterr().err.split())
    assert "resuming after step 4 with other settings: run.steps was 4, is 8; learner.lr" in shown
    assert shown.count("resuming") == 3


def test_a_run_that_moved_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipe(tmp_path / "a")
    with_work(config).close()
    (tmp_path / "a").rename(tmp_path / "b")
    resumed(recipe(tmp_path / "b")).close()
    assert "resuming" not in capsys.readouterr().err


def test_a_collection_is_resumed_under_the_settings_that_made_it() -> None:
    before = load_config("catalog", ["collect.source=endpoint", "collect.endpoint.model=a"])
    for change in ("collect.tasks=900", "collect.filter.min_trials=0", "collect.concurrency=2"):
        settings = ["collect.source=endpoint", "collect.endpoint.model=a", change]
        check_unchanged(RunKind.COLLECT, "it", before, load_config("catalog", settings), "x")
    for change, name in (
        ("collect.samples=2", "collect.samples"),
        ("collect.endpoint.model=b", "collect.endpoint.model"),
        ("episode.mode=direct", r"episode\.mode"),
        ("run.seed=9", "run.seed"),
    ):
        settings = ["collect.source=endpoint", "collect.endpoint.model=a", change]
        with pytest.raises(ConfigError, match=rf"other settings \({name} was"):
            check_unchanged(RunKind.COLLECT, "it", before, load_config("catalog", settings), "x")
