"""`auto` is a cluster of one's own, never one that somebody else has started."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from cluster.config.run_config import RunConfig
from cluster.fleet.ray_address import own_cluster
from cluster.fleet.ray_session import ray_session
from envs.errors import MissingError

Running = Callable[..., None]
MINE, THEIRS = os.getuid(), os.getuid() + 4242


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Running:
    """Let the machine run Ray nodes, given as (address of the head, owner)."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def set_up(*nodes: tuple[str, int]) -> None:
        found = [process(f"/x/raylet --gcs-address={a} --y", owner) for a, owner in nodes]
        other = [process("vi raylet --gcs-address=9.9.9.9:1", MINE), process("", MINE)]
        monkeypatch.setattr(psutil, "process_iter", lambda attributes: [*other, *found])

    return set_up


def process(command: str, owner: int) -> Any:
    return SimpleNamespace(info={"cmdline": command.split(), "uids": SimpleNamespace(real=owner)})


def test_the_own_one_of_several_clusters_is_found(running: Running) -> None:
    running(("10.0.0.1:6379", THEIRS), ("10.0.0.2:6379", MINE), ("10.0.0.2:6379", MINE))
    assert own_cluster() == "10.0.0.2:6379"


def test_a_cluster_of_others_is_named_and_not_joined(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(("10.0.0.1:6379", THEIRS))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    joined: list[str] = []
    monkeypatch.setattr(ray, "init", lambda **given: joined.append(given["address"]))
    with (
        pytest.raises(MissingError, match=r"others have started 10\.0\.0\.1:6379 \(user"),
        ray_session(RunConfig()),
    ):
        pass
    assert joined == []


def test_where_nothing_runs_the_way_out_is_said(running: Running) -> None:
    running()
    with pytest.raises(MissingError, match="start one with `ray start --head`, or name one"):
        own_cluster()


def test_of_several_own_ones_the_last_started_is_meant_or_none(
    running: Running, tmp_path: Path
) -> None:
    running(("10.0.0.1:6379", MINE), ("10.0.0.2:6379", MINE))
    with pytest.raises(MissingError, match=r"several Ray clusters of yours .*10\.0\.0\.1:6379, 10"):
        own_cluster()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.2:6379")
    assert own_cluster() == "10.0.0.2:6379"
