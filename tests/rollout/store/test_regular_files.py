"""Somebody else's run directory: links lead nowhere, and named pipes hold nobody up."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.progress import Progress
from envs.errors import StoreError, TrialrunError
from rollout.store.control import take_requests
from rollout.store.journal import Journal, read_objects, replace_file
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunLayout
from rollout.store.run_lock import is_written, take_lock
from rollout.store.run_reader import RunReader

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file elsewhere, which no command may change."""
    path = tmp_path / "victim"
    path.write_text("mine\n")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    RunDirectory.create(path, "", RunInfo(run="unit", seed=0, created_at=0.0)).close()
    return path


def linked(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


WRITES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "lock": (".lock", lambda run: take_lock(RunLayout(run))),
    "reader of the lock": (".lock", lambda run: is_written(RunLayout(run))),
    "manifest": ("manifest.jsonl", RunDirectory.open),
    "ledger": ("ledger/events.jsonl", RunDirectory.open),
    "metrics": ("metrics/metrics.jsonl", RunDirectory.open),
    "control": ("control.jsonl", RunDirectory.open),
    "journal": ("plain.jsonl", lambda run: Journal(run / "plain.jsonl")),
    "reading": ("metrics/metrics.jsonl", lambda run: read_objects(RunReader(run).layout.metrics)),
    "log": ("log.txt", lambda run: Progress().logged(RunLayout(run).log).__enter__()),
}


@pytest.mark.parametrize(("name", "open_it"), WRITES.values(), ids=WRITES)
def test_a_link_is_refused_and_its_target_stays(
    run: Path, victim: Path, name: str, open_it: Callable[[Path], object]
) -> None:
    linked(run / name, victim)
    with pytest.raises(StoreError, match="symbolic link"):
        open_it(run)
    assert victim.read_text() == "mine\n"


@pytest.mark.parametrize(("name", "open_it"), WRITES.values(), ids=WRITES)
def test_a_named_pipe_is_refused_at_once(
    run: Path, name: str, open_it: Callable[[Path], object]
) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises((TrialrunError, OSError)):
        open_it(run)


def test_a_replaced_file_follows_no_link(run: Path, victim: Path) -> None:
    linked(run / "plot.json", victim)
    linked(run / ".plot.json.new", victim)
    replace_file(run / "plot.json", b"{}")
    assert (victim.read_text(), (run / "plot.json").read_text()) == ("mine\n", "{}")
    assert not (run / "plot.json").is_symlink()


@pytest.mark.parametrize("folder", ["annotations", "ledger", "requests"])
def test_a_linked_folder_is_refused(run: Path, tmp_path: Path, folder: str) -> None:
    target = tmp_path / "elsewhere"
    if (run / folder).exists():
        (run / folder).rename(target)
    else:
        target.mkdir()
    (run / folder).symlink_to(target)
    with pytest.raises(StoreError, match=f"symbolic link at .*{folder}"):
        RunDirectory.open(run)


def test_checkpoints_may_lie_on_another_disk(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints").rename(tmp_path / "large")
    (run / "checkpoints").symlink_to(tmp_path / "large")
    RunDirectory.open(run).close()


def test_requests_that_are_no_files_hold_up_nobody(run: Path, victim: Path) -> None:
    layout = RunLayout(run)
    layout.requests.mkdir()
    os.mkfifo(layout.requests / "1.json")
    (layout.requests / "2.json").symlink_to(victim)
    (layout.requests / "3.json").mkdir()
    (layout.requests / "4.json").write_text("no request")
    assert list(take_requests(layout)) == [("4", None)]
