"""The mirror in the life of a run, in a folder: kept behind it, restored elsewhere, or refused."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.cli.main import app
from cluster.cli.path_checks import check_model, check_unmirrored
from cluster.config.places import absolute_place
from cluster.config.run_config import RunConfig
from cluster.lifecycle.mirror_process import (
    MirrorOrder,
    MirrorProcess,
    MirrorState,
    Throttle,
    read_state,
)
from cluster.lifecycle.mirroring import mirror_address
from cluster.lifecycle.opening import Resume, open_run, prepare_run
from cluster.lifecycle.retention import newest_checkpoint
from cluster.progress import QUIET, Progress
from envs.errors import ConfigError, InfraError, MissingError, StoreError
from rollout.mirror.claim import CLAIM
from rollout.mirror.head import DATA
from rollout.mirror.place import Place
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import RunReader
from tests.cluster.mirror.played_run import play, recipe
from tests.rollout.mirror.mirrored_run import check_invariants, go_on, save_checkpoint
from tests.waiting import expect_within

Recipe = Callable[..., RunConfig]


@pytest.fixture
def recipe_in(tmp_path: Path) -> Recipe:
    """Return the recipe of one run with one mirror, in the folder of some cluster."""

    def made(cluster: str = "here", *overrides: str) -> RunConfig:
        return recipe(
            [f"run.dir={tmp_path / cluster}", f"mirror.url=file://{tmp_path}/s", *overrides]
        )

    return made


def state_of(config: RunConfig) -> MirrorState:
    return read_state(RunLayout(config.path)) or MirrorState(address="", state="none")


def start(config: RunConfig) -> RunDirectory:
    return open_run(RunKind.TRAIN, config.path, config, Resume.IF_PRESENT, QUIET)


def place_of(config: RunConfig) -> Place:
    return Place(mirror_address(config, config.path))


def test_the_end_forgets_a_failure_that_was_made_good(
    recipe_in: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread would have noticed later that the storage answers again."""

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    config = recipe_in("here", "mirror.url=''")
    with start(config) as run:
        go_on(run, 2)
        order = MirrorOrder(
            run_dir=config.path,
            address=f"file://{tmp_path}/s/run",
            endpoint="",
            region="",
            interval_s=1.0,
            max_mib_per_s=0.0,
            lease_s=60.0,
            token="this one",
            own_claim="",
        )
        process = MirrorProcess(order, lambda news: None)
        process._start()
        process._send_bundles()
        process._note_failure("bundles", "the storage does not answer")
        assert state_of(config).state == "failing"
        process.finish()
        with pytest.raises(SystemExit):
            for _ in range(3):
                process._commit()
        found = state_of(config)
    assert (found.state, found.problem) == ("up to date", "")


def test_a_run_goes_on_elsewhere_from_its_mirror(recipe_in: Recipe) -> None:
    here, there = recipe_in("here"), recipe_in("there")
    play(here, 5, 12, Resume.NO)
    assert state_of(here).state == "up to date"
    shutil.rmtree(here.path)
    play(there, 8, 12, Resume.REQUIRED)
    check_invariants(RunReader(there.path), 8)
    newest = newest_checkpoint(RunLayout(there.path).checkpoints)
    assert newest is not None and newest.name == "000008"
    assert [row.step for row in RunReader(there.path).metrics()] == list(range(1, 9))


def test_a_restored_run_is_at_its_newest_checkpoint(recipe_in: Recipe) -> None:
    here, there = recipe_in("here"), recipe_in("there")
    play(here, 5, 12)
    opening = prepare_run(RunKind.TRAIN, there.path, there, Resume.REQUIRED, QUIET)
    assert opening.resumes
    assert [row.step for row in RunReader(there.path).metrics()] == [1, 2, 3, 4]
    kept = RunLayout(there.path).checkpoints.iterdir()
    assert [path.name for path in kept] == ["000004"], "the newest alone"


def test_steps_before_the_first_checkpoint_are_no_obstacle(recipe_in: Recipe) -> None:
    """The checkpoint of step 2 was still on its way when the first cluster was lost."""
    here, there = recipe_in("here"), recipe_in("there")
    with start(here) as run:
        go_on(run, 3, every=100)
    play(there, 4, 12)
    check_invariants(RunReader(there.path), 4)


def test_an_older_run_directory_is_refused(recipe_in: Recipe) -> None:
    here, there = recipe_in("here"), recipe_in("there")
    play(here, 4, 12)
    play(there, 6, 12)
    with pytest.raises(StoreError, match="this directory is older: move this directory away"):
        start(here)
    unmirrored = recipe_in("here", "mirror.url=''")
    start(unmirrored).close()
    with pytest.raises(StoreError, match="has two histories"):
        start(here)
    shutil.rmtree(here.path)
    play(here, 8, 12)
    check_invariants(RunReader(here.path), 8)


def test_a_mirror_of_another_run_is_refused(recipe_in: Recipe) -> None:
    here = recipe_in("here")
    play(here, 2, 12)
    other = recipe_in("other", "mirror.url=''")
    play(other, 2, 12)
    with pytest.raises(StoreError, match="is the mirror of another run"):
        start(recipe_in("other"))


def test_a_new_run_where_the_mirror_has_one_is_refused(recipe_in: Recipe) -> None:
    play(recipe_in("here"), 2, 12)
    there = recipe_in("there")
    with pytest.raises(StoreError, match="holds the run 'first' already"):
        prepare_run(RunKind.TRAIN, there.path, there, Resume.NO, QUIET)
    assert not there.path.exists()


def test_nothing_to_resume_is_said_as_without_a_mirror(recipe_in: Recipe) -> None:
    config = recipe_in()
    with pytest.raises(MissingError, match="expected a training run to resume"):
        prepare_run(RunKind.TRAIN, config.path, config, Resume.REQUIRED, QUIET)


def test_a_mirror_with_a_running_writer_is_refused(recipe_in: Recipe) -> None:
    here, there = recipe_in("here"), recipe_in("there")
    with start(here) as run:
        go_on(run, 2)
        expect_within(60, lambda: state_of(here).state == "up to date", "mirrored")
        with pytest.raises(
            StoreError, match=f"expected no other writer of .* process {os.getpid()}"
        ):
            prepare_run(RunKind.TRAIN, there.path, there, Resume.REQUIRED, QUIET)
        assert not RunLayout(there.path).run_json.exists()


def test_a_damaged_mirror_is_refused_and_leaves_nothing(recipe_in: Recipe) -> None:
    here, there = recipe_in("here"), recipe_in("there")
    play(here, 2, 12)
    place = place_of(here)
    (key,) = (key for key in place.sizes(DATA) if "rank-0" in key)
    place.write(key, b"cut")
    with pytest.raises(StoreError, match=r"rank-0.*is damaged: expected 1000 bytes"):
        start(there)
    assert not RunLayout(there.path).run_json.exists()
    assert [path.name for path in there.path.iterdir()] == []


def test_a_writer_that_was_replaced_goes_on_without_its_mirror(
    recipe_in: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    config = recipe_in()
    with open_run(RunKind.TRAIN, config.path, config, Resume.NO, Progress()) as run:
        go_on(run, 1)
        expect_within(60, lambda: state_of(config).state == "up to date", "mirrored")
        other = b'{"token": "other", "host": "elsewhere", "pid": 3, "lease_s": 60}'
        place_of(config).write(CLAIM, other)
        expect_within(60, lambda: state_of(config).state == "given up", "noticed")
        go_on(run, 2)
    said = capfd.readouterr().err
    assert "was taken over by process 3 on elsewhere" in " ".join(said.split())
    assert RunReader(config.path).ledger().last_step == 2


def test_a_process_that_dies_is_started_again(
    recipe_in: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.lifecycle.mirroring._RESTART_S", 0.1)
    config = recipe_in()
    with start(config) as run:
        go_on(run, 1)
        expect_within(60, lambda: state_of(config).state == "up to date", "mirrored")
        children = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "cluster.lifecycle.mirror_process"],
            capture_output=True,
            text=True,
            check=True,
        )
        (child,) = map(int, children.stdout.split())
        os.kill(child, signal.SIGKILL)
        go_on(run, 3)
    assert state_of(config).state == "up to date"
    play(recipe_in("there"), 4, 12)


def test_a_storage_that_cannot_be_used_is_refused_at_the_start(
    recipe_in: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "s").write_text("a file")
    config = recipe_in()
    with pytest.raises(
        InfraError, match=r"check mirror\.url, mirror\.endpoint and the credentials"
    ):
        start(config)
    assert not config.path.exists()


def test_a_run_that_is_there_goes_on_while_the_storage_does_not_answer(
    recipe_in: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = recipe_in()
    play(config, 2, 12)
    shutil.move(tmp_path / "s", tmp_path / "aside")
    (tmp_path / "s").write_text("a file")
    short = recipe_in("here", "mirror.final_wait_s=1")
    play(short, 3, 12)
    said = " ".join(capfd.readouterr().err.split())
    assert "the mirror is not checked" in said
    assert "warning: the mirror file://" in said and "lacks" in said
    (tmp_path / "s").unlink()
    shutil.move(tmp_path / "aside", tmp_path / "s")
    play(config, 4, 12)
    assert state_of(config).state == "up to date"


def test_the_end_names_what_the_mirror_lacks(
    recipe_in: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    config = recipe_in("here", "mirror.max_mib_per_s=0.5", "mirror.final_wait_s=2")
    with open_run(RunKind.TRAIN, config.path, config, Resume.NO, Progress()) as run:
        expect_within(60, lambda: state_of(config).state == "up to date", "mirrored")
        save_checkpoint(run.layout, 2, 8 * 2**20)
    said = " ".join(capfd.readouterr().err.split())
    assert "lacks checkpoints/000002 (8.0 MiB)" in said
    assert "resuming the run there completes the mirror" in said
    with start(recipe_in()):
        pass
    assert state_of(config).state == "up to date"


def test_a_throttle_bounds_what_passes() -> None:
    throttle, started = Throttle(100_000), time.monotonic()
    for _ in range(10):
        throttle(10_000)
    assert time.monotonic() - started > 0.5


def test_a_restore_that_was_cut_off_is_done_again(recipe_in: Recipe) -> None:
    here, there = recipe_in("here"), recipe_in("there")
    play(here, 4, 12)
    (there.path / "ledger").mkdir(parents=True)
    (there.path / "ledger" / "events.jsonl").write_text("half of it")
    (there.path / ".restoring-0000").mkdir()
    play(there, 6, 12)
    check_invariants(RunReader(there.path), 6)


def test_a_failed_start_is_replaced_by_the_run_of_the_mirror(recipe_in: Recipe) -> None:
    here, there = recipe_in("here"), recipe_in("there")
    play(here, 4, 12)
    start(recipe_in("there", "mirror.url=''")).close()
    play(there, 6, 12)
    check_invariants(RunReader(there.path), 6)


def test_a_start_that_failed_and_was_mirrored_blocks_nothing(recipe_in: Recipe) -> None:
    here, there = recipe_in("here"), recipe_in("there")
    start(here).close()
    play(here, 2, 12, Resume.NO)
    assert state_of(here).state == "up to date"
    play(there, 4, 12, Resume.REQUIRED)
    start(recipe_in("other", "run.name=second")).close()
    play(recipe_in("third", "run.name=second"), 2, 12, Resume.NO)


def test_a_mirror_in_the_run_directory_is_refused(recipe_in: Recipe, tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}/here", f"file://{tmp_path}/here/first/inside"):
        config = recipe_in("here", f"mirror.url={url}")
        with pytest.raises(ConfigError, match=r"expected the mirror apart from the run directory"):
            start(config)
    assert not config.path.exists()


def test_an_address_is_no_run_directory() -> None:
    for key, value in (("run.dir", "s3://bucket/runs"), ("--run", Path("s3://bucket/runs"))):
        with pytest.raises(ConfigError, match="a run is written to a folder"):
            absolute_place(key, value, {})
    with pytest.raises(MissingError, match="`trialrun fetch` gets"):
        check_model("s3://bucket/runs/first/model")


def test_study_and_demo_refuse_a_mirror(recipe_in: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"expected no mirror\.url in `trialrun study`"):
        check_unmirrored(recipe_in(), "study")
    assert app.registered_groups
