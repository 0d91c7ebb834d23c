"""Splits and samples of finite task sets: the same on every machine and in every release."""

from hashlib import sha256

import pytest

from envs.endpoints import Endpoint
from envs.errors import ConfigError
from envs.tasks import Split
from envs.tasksets.collection import TaskCollection, split_of
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.environment import FileEnvironment
from envs.tasksets.outside import Outside
from envs.tasksets.toolhop.config import ToolHopEnvConfig
from envs.tasksets.toolhop.environment import ToolHopEnvironment
from envs.tools import ToolSet


def no_servers(endpoint: Endpoint) -> ToolSet:
    raise AssertionError(endpoint)


@pytest.mark.parametrize(
    ("name", "digests"),
    [
        ("toolhop", ["3c95e7ff92687368", "fb430cad2c04f550", "68943c2624998e44"]),
        ("file", ["5c17e4c3d8390a6b", "8cd55eee43197c69", "53b09a216a5ba5b3"]),
    ],
)
def test_a_task_keeps_its_split(name: str, digests: list[str]) -> None:
    """Runs that were stored name their tasks by split: a task that moves would be leaked."""
    for percent, digest in zip((0, 20, 50), digests, strict=True):
        splits = ", ".join(f'"{split_of(name, str(i), percent)}"' for i in range(500))
        assert sha256(f"[{splits}]".encode()).hexdigest()[:16] == digest


TOOLHOP = {
    "train": "9206 9209 9201 9207 9203 9212 9210 9211 9204",
    "validation": "9205",
    "heldout": "9208 9202",
}
FILE = {
    "train": "ada-pays-60 dag-pays all-coins bo-twice ada-balance dag-fee ada-pays-bo",
    "validation": "eve-opens who-is-frozen",
    "heldout": "cleo-receives poorest bo-empties",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (ToolHopEnvironment(ToolHopEnvConfig()), TOOLHOP),
        (FileEnvironment(FileEnvConfig(), Outside(list_tools=no_servers)), FILE),
    ],
    ids=["toolhop", "file"],
)
def test_a_sample_keeps_its_order(environment: TaskCollection, expected: dict[Split, str]) -> None:
    for split, ids in expected.items():
        sample = [task.id for task in environment.tasks(split, 5, None)]
        assert sample == [f"{environment.name}-{identity}" for identity in ids.split()]
        assert [task.id for task in environment.tasks(split, 5, 1)] == sample[:1]
    assert not environment.endless


def test_a_split_with_too_few_tasks_is_an_error() -> None:
    environment = FileEnvironment(FileEnvConfig(), Outside(list_tools=no_servers))
    with pytest.raises(ConfigError, match=r"expected 8 tasks in the train split.*found 7"):
        environment.tasks("train", 0, 8)
    with pytest.raises(ConfigError, match="found none among 12"):
        ToolHopEnvironment(ToolHopEnvConfig(heldout_percent=100)).tasks("train", 0, None)
