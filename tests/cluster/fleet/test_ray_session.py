"""What a user reads where Ray does not start, or is not where RAY_ADDRESS says."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest
import ray

from cluster.cli.command_line import stack
from cluster.config.run_config import RunConfig
from cluster.fleet.ray_environment import RAY_AUTH_MODE, RAY_START_WAIT
from cluster.fleet.ray_session import (
    LEAST_STORE_BYTES,
    object_store_bytes,
    ray_session,
)
from envs.errors import InfraError, MissingError, TrialrunError

TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def refusal(monkeypatch: pytest.MonkeyPatch, error: Exception) -> TrialrunError:
    """Return what the session raises where `ray.init` raises `error`."""

    def init(**_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(TrialrunError) as raised, ray_session(RunConfig()):
        pass
    return raised.value


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    told = ("RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED", "DS_ACCELERATOR", "TQDM_DISABLE")
    for name in (RAY_START_WAIT, RAY_AUTH_MODE, *TOKENS, *told):
        monkeypatch.setenv(name, "")  # so that what the session sets is undone too
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_start_that_times_out_is_one_line_that_says_what_to_try(
    environment: pytest.MonkeyPatch,
) -> None:
    timed_out = Exception("The current node timed out during startup.\nThis could happen.")
    error = refusal(environment, timed_out)
    assert isinstance(error, InfraError)
    assert "timed out during startup. This could happen." in str(error)
    assert "more time with RAY_raylet_start_wait_time_s=360 (now 30 seconds)" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(("chosen", "found"), [(None, "120"), ("7", "7")])
def test_ray_gets_more_patience_unless_the_user_chose(
    environment: pytest.MonkeyPatch, chosen: str | None, found: str
) -> None:
    """It is set before the stack is imported: Ray looks only once, as it is imported."""
    if chosen is not None:
        environment.setenv(RAY_START_WAIT, chosen)
    stack("scheduling.groups")
    assert os.environ[RAY_START_WAIT] == found
    assert f"(now {found} seconds)" in str(refusal(environment, Exception("no")))


@pytest.mark.parametrize(
    ("chosen", "token", "found"),
    [
        (None, "", None),
        (None, "file", "token"),
        (None, "RAY_AUTH_TOKEN", "token"),
        (None, "RAY_AUTH_TOKEN_PATH", "token"),
        ("disabled", "file", "disabled"),
    ],
)
def test_a_token_is_shown_where_there_is_one(
    environment: pytest.MonkeyPatch,
    tmp_path: Path,
    chosen: str | None,
    token: str,
    found: str | None,
) -> None:
    environment.setenv("HOME", str(tmp_path))
    environment.delitem(sys.modules, "ray")
    if token == "file":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    elif token:
        environment.setenv(token, "secret")
    if chosen:
        environment.setenv(RAY_AUTH_MODE, chosen)
    stack("scheduling.groups")
    assert os.environ.get(RAY_AUTH_MODE) == found


def test_an_imported_ray_is_left_as_it_is(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("RAY_AUTH_TOKEN", "secret")
    stack("scheduling.groups")
    assert RAY_AUTH_MODE not in os.environ


@pytest.mark.parametrize(
    ("memory", "shm", "store"),
    [
        (1_000 * 2**30, 500 * 2**30, 250 * 2**30),  # /dev/shm decides: the weights get half
        (100 * 2**30, 500 * 2**30, 30 * 2**30),
        (1 * 2**30, 64 * 2**20, LEAST_STORE_BYTES),
    ],
)
def test_the_object_store_has_the_size_of_the_node(memory: int, shm: int, store: int) -> None:
    assert object_store_bytes(memory, shm) == store


def test_a_ray_started_here_gets_a_store_of_that_size(environment: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    environment.setattr(ray, "init", lambda **options: asked.update(options))
    environment.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=8 * 2**30))
    environment.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * 2**30))
    with ray_session(RunConfig()):
        pass
    assert asked["object_store_memory"] == 3 * 2**30


@pytest.mark.parametrize("address", ["nonsense", "1.2.3.4", "head:port"])
def test_an_address_that_is_none(environment: pytest.MonkeyPatch, address: str) -> None:
    environment.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(MissingError, match=f"no Ray cluster at RAY_ADDRESS={address}: .*HOST:PORT"),
        ray_session(RunConfig()),
    ):
        pass
