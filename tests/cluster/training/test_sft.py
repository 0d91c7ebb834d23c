"""Where an SFT goes on, and where it must not; tests/e2e/test_kill_sft.py kills one."""

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.opening import new_run
from cluster.progress import Progress
from cluster.training.sft import imitate, open_sft
from envs.errors import ConfigError, StoreError
from rollout.store.run_layout import RunLayout


def recipe(folder: Path, *overrides: str) -> RunConfig:
    return load_config("catalog", [f"run.dir={folder}", "run.name=taught", *overrides])


def table(*token_ids: list[int]) -> pa.Table:
    names = [f"e{index}" for index in range(len(token_ids))]
    return pa.table({"episode": names, "token_ids": pa.array(token_ids, pa.list_(pa.int32()))})


async def begun_with(config: RunConfig, lessons: pa.Table) -> list[dict[str, float]]:
    """Imitate in a run whose model is finished, so that no learner starts."""
    with open_sft(config, config.path, resume=True) as run:
        run.layout.model.mkdir(exist_ok=True)
        if not run.layout.metrics.exists() or not run.layout.metrics.stat().st_size:
            run.record_metrics(1, {"steps": 1.0, "loss": 0.5})
        return await imitate(config, Path("tiny"), lessons, run, Progress(quiet=True))


def test_a_second_sft_needs_resume(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    with open_sft(config, config.path, resume=False):
        pass
    with (
        pytest.raises(StoreError, match=r"already: go on with --resume, or choose another"),
        open_sft(config, config.path, resume=False),
    ):
        pass


def test_resume_begins_where_nothing_was_begun(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    with open_sft(config, config.path, resume=True) as run:
        assert RunLayout(config.path).run_json.exists()
        assert run.path == config.path


def test_an_sft_lies_beside_what_was_collected_and_beside_nothing_else(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    new_run(config.path / "collected", config).close()
    (config.path / "thesis.tex").touch()
    with (
        pytest.raises(StoreError, match=r"new or empty folder, found \['thesis\.tex'\]"),
        open_sft(config, config.path, resume=False),
    ):
        pass
    (config.path / "thesis.tex").unlink()
    with open_sft(config, config.path, resume=False) as run:
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
    with open_sft(config, config.path, resume=False):
        pass
    other = recipe(tmp_path, override)
    with (
        pytest.raises(ConfigError) as refusal,
        open_sft(other, config.path, resume=True),
    ):
        pass
    assert f"other settings ({named} was " in str(refusal.value)


def test_how_often_it_is_saved_may_change(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    with open_sft(config, config.path, resume=False):
        pass
    often = recipe(tmp_path, "sft.checkpoint_every=1", "run.keep_checkpoints=9")
    with open_sft(often, config.path, resume=True):
        pass


async def test_a_finished_sft_is_not_repeated(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    for _ in range(2):
        rows = await begun_with(config, table([1, 2], [3]))
        assert rows == [{"steps": 1.0, "loss": 0.5}]


@pytest.mark.parametrize("other", [table([1], [2, 3]), table([1, 2], [4]), table([1, 2])])
async def test_other_episodes_are_refused(tmp_path: Path, other: pa.Table) -> None:
    config = recipe(tmp_path)
    await begun_with(config, table([1, 2], [3]))
    with pytest.raises(ConfigError, match=r"begun with 2 other episodes than these \d: go on"):
        await begun_with(config, other)


async def test_the_same_episodes_in_other_chunks_are_the_same(tmp_path: Path) -> None:
    config, whole = recipe(tmp_path), table([1, 2], [3])
    await begun_with(config, whole)
    await begun_with(config, pa.concat_tables([whole.slice(0, 1), whole.slice(1)]))
