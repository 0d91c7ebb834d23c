"""When an SFT run is resumed, and when it is refused; tests/e2e/test_kill_sft.py kills one."""

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.opening import Resume, new_run, open_run
from cluster.progress import Progress
from cluster.training.sft import train_sft
from envs.errors import ConfigError, StoreError
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind


def recipe(folder: Path, *overrides: str) -> RunConfig:
    return load_config("catalog", [f"run.dir={folder}", "run.name=taught", *overrides])


def table(*token_ids: list[int]) -> pa.Table:
    names = [f"e{index}" for index in range(len(token_ids))]
    return pa.table({"episode": names, "token_ids": pa.array(token_ids, pa.list_(pa.int32()))})


def opened(config: RunConfig, resume: Resume) -> RunDirectory:
    return open_run(RunKind.SFT, config.path, config, resume, Progress(quiet=True))


def with_work(config: RunConfig) -> None:
    with opened(config, Resume.NO) as run:
        run.record_metrics(1, {"loss": 0.5})


async def trained_on(config: RunConfig, data: pa.Table) -> list[dict[str, float]]:
    """Train in a run whose model is finished, so that no learner starts."""
    with opened(config, Resume.IF_PRESENT) as run:
        run.layout.model.mkdir(exist_ok=True)
        if not run.layout.metrics.exists() or not run.layout.metrics.stat().st_size:
            run.record_metrics(1, {"steps": 1.0, "loss": 0.5})
        return await train_sft(config, Path("tiny"), data, run, Progress(quiet=True))


def test_an_sft_run_lies_next_to_a_collection_and_nothing_else(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    new_run(config.path / "collected", config, RunKind.COLLECT).close()
    (config.path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"new or empty folder, found \['thesis\.tex'\]"):
        opened(config, Resume.NO)
    (config.path / "thesis.tex").unlink()
    with opened(config, Resume.NO) as run:
        assert run.path == config.path


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sft.lr=0.5", "sft.lr"),
        ("run.seed=99", "run.seed"),
        ("env.catalog.tools=2", "env.catalog.tools"),
        ("teacher.episodes=17", "teacher.episodes"),
        ("learner.ranks=2", "learner.ranks"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, override: str, named: str) -> None:
    config = recipe(tmp_path)
    with_work(config)
    other = recipe(tmp_path, override)
    with pytest.raises(ConfigError) as refusal:
        opened(other, Resume.REQUIRED)
    assert f"other settings ({named} was " in str(refusal.value)


def test_how_often_it_is_saved_may_change(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    with_work(config)
    often = recipe(tmp_path, "sft.checkpoint_every=1", "run.keep_checkpoints=9")
    opened(often, Resume.REQUIRED).close()


async def test_a_finished_sft_is_not_repeated(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    for _ in range(2):
        rows = await trained_on(config, table([1, 2], [3]))
        assert rows == [{"steps": 1.0, "loss": 0.5}]


@pytest.mark.parametrize("other", [table([1], [2, 3]), table([1, 2], [4]), table([1, 2])])
async def test_other_episodes_are_refused(tmp_path: Path, other: pa.Table) -> None:
    config = recipe(tmp_path)
    await trained_on(config, table([1, 2], [3]))
    with pytest.raises(ConfigError, match=r"started with 2 other episodes than these \d: resume"):
        await trained_on(config, other)


async def test_the_same_episodes_in_other_chunks_are_the_same(tmp_path: Path) -> None:
    config, whole = recipe(tmp_path), table([1, 2], [3])
    await trained_on(config, whole)
    await trained_on(config, pa.concat_tables([whole.slice(0, 1), whole.slice(1)]))


async def test_data_of_an_older_run_is_found(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    await trained_on(config, table([1, 2], [3]))
    (config.path / "sft_data.json").rename(config.path / "lessons.json")
    with pytest.raises(ConfigError, match="started with 2 other episodes"):
        await trained_on(config, table([1]))
    await trained_on(config, table([1, 2], [3]))
    assert not (config.path / "sft_data.json").exists()
