"""How a run starts, is refused and is resumed, whatever its kind."""

from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.inputs import Environments
from cluster.lifecycle.opening import Resume, check_run, new_run, open_run
from cluster.progress import Progress
from cluster.training.sft import run_sft
from cluster.training.train import run_train
from envs.config import JudgeConfig
from envs.errors import ConfigError, MissingError, StoreError
from envs.tasks import Environment
from envs.tasksets.catalog.config import CatalogEnvConfig
from envs.tasksets.catalog.environment import CatalogEnvironment
from rollout.store.run_directory import RunDirectory
from rollout.store.run_kind import is_blank, kind_of
from rollout.store.run_layout import RunInfo, RunKind, RunLayout

KINDS = [kind for kind in RunKind if kind is not RunKind.UNKNOWN]


def recipe(folder: Path, *overrides: str) -> RunConfig:
    places = (f"run.dir={folder}", "run.name=first", f"run.models_dir={folder / 'models'}")
    return load_config("catalog", [*places, *overrides])


def opened(kind: RunKind, config: RunConfig, resume: Resume) -> RunDirectory:
    return open_run(kind, config.path, config, resume, Progress(quiet=True))


def with_work(kind: RunKind, config: RunConfig) -> None:
    with new_run(config.path, config, kind) as run:
        run.record_metrics(1, {"loss": 0.5})


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_states_its_kind_and_is_resumed(tmp_path: Path, kind: RunKind) -> None:
    config = recipe(tmp_path)
    with opened(kind, config, Resume.NO) as run:
        assert kind_of(run.layout) is kind
        run.record_metrics(1, {"loss": 0.5})
    with pytest.raises(StoreError, match="already: resume it with --resume, or "):
        check_run(kind, config.path, config, Resume.NO)
    for resume in (Resume.REQUIRED, Resume.IF_PRESENT):
        with opened(kind, config, resume) as run:
            assert run.info.kind is kind


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_nothing_to_resume_where_nothing_is(tmp_path: Path, kind: RunKind) -> None:
    config = recipe(tmp_path)
    with pytest.raises(MissingError, match="leave out --resume"):
        check_run(kind, config.path, config, Resume.REQUIRED)
    assert not config.path.exists()
    opened(kind, config, Resume.IF_PRESENT).close()


@pytest.mark.parametrize("resume", list(Resume))
def test_a_run_of_another_kind_is_named_with_the_way_out(tmp_path: Path, resume: Resume) -> None:
    config = recipe(tmp_path)
    with_work(RunKind.SFT, config)
    with pytest.raises(StoreError, match=r"found an SFT run: .* run\.name=first-train"):
        check_run(RunKind.TRAIN, config.path, config, resume)
    with pytest.raises(StoreError, match="name another folder with --run"):
        check_run(RunKind.EVAL, config.path, config, resume)


def test_a_run_that_recorded_nothing_starts_over_under_any_settings(tmp_path: Path) -> None:
    new_run(recipe(tmp_path).path, recipe(tmp_path), RunKind.SFT).close()
    other = recipe(tmp_path, "run.seed=9", "model.max_model_len=900")
    with opened(RunKind.TRAIN, other, Resume.NO) as run:
        assert (run.info.kind, run.info.seed) == (RunKind.TRAIN, 9)
    assert load_config(str(run.layout.config_toml)) == other


def test_a_run_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    with (
        new_run(config.path, config, RunKind.TRAIN),
        pytest.raises(StoreError, match="another process is writing"),
    ):
        check_run(RunKind.TRAIN, config.path, config, Resume.IF_PRESENT)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (("model.path=nowhere",), MissingError),
        (("env.name=toolhop", "env.path=nowhere.json"), MissingError),
        (("model.max_model_len=999999",), ConfigError),
    ],
)
def test_a_failed_start_leaves_no_run_directory(
    tmp_path: Path, overrides: tuple[str, ...], error: type[Exception]
) -> None:
    config = recipe(tmp_path, *overrides)
    for run in (
        lambda: run_train(config, resume=False),
        lambda: run_sft(config, [], resume=False),
    ):
        with pytest.raises((error, ConfigError)):
            run()
        assert not config.path.exists()


def test_sft_without_a_teacher_leaves_no_run_directory(tmp_path: Path) -> None:
    config = recipe(tmp_path, "env.name=file")
    with pytest.raises(ConfigError, match="no scripted teacher"):
        run_sft(config, [], resume=False)
    assert not config.path.exists()


@pytest.mark.parametrize(
    ("name", "group", "command", "kind"),
    [
        ("run", "g000000", "", RunKind.TRAIN),
        ("run", "t000000", "", RunKind.COLLECT),
        ("teacher", "t000000", "", RunKind.TEACHER),
        ("run", "toolhop-7", "", RunKind.EVAL),
        ("run", "", "trialrun sft catalog", RunKind.SFT),
        ("run", "", "trialrun demo", RunKind.UNKNOWN),
    ],
)
def test_older_runs_show_their_kind(
    tmp_path: Path, name: str, group: str, command: str, kind: RunKind
) -> None:
    path = tmp_path / name
    RunDirectory.create(path, "", RunInfo(run="r", seed=0, created_at=0.0, command=command)).close()
    layout = RunLayout(path)
    assert is_blank(layout)
    if group:
        sample = '{"episode": "e", "sample_index": 0, "attempt": 0, "seed": 1}'
        layout.ledger.write_text(
            f'{{"event": "leased", "run": "r", "group": "{group}", "task": "t", '
            f'"samples": [{sample}]}}\n'
        )
        assert not is_blank(layout)
    assert kind_of(layout) is kind


def test_an_older_sft_run_is_known_by_its_data(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "r", "", RunInfo(run="r", seed=0, created_at=0.0)).close()
    (tmp_path / "r" / "lessons.json").write_text("{}")
    assert kind_of(RunLayout(tmp_path / "r")) is RunKind.SFT


def test_equal_sections_share_one_environment() -> None:
    made: list[RunConfig] = []

    def make(config: RunConfig) -> Environment:
        made.append(config)
        assert isinstance(config.env, CatalogEnvConfig)
        return CatalogEnvironment(config.env.catalog)

    environments = Environments(make)
    first = environments.of(RunConfig())
    assert environments.of(RunConfig()) is first
    assert environments.of(RunConfig(env=CatalogEnvConfig(perturbation="heavy"))) is not first
    assert environments.of(RunConfig(judge=JudgeConfig(model="other"))) is not first
    assert len(made) == 3
