"""A run on a mount that nobody can write to: everything is shown, and what would write says why."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.dashboard.bundle.write import Bundle, write_bundle
from tests.cluster.dashboard.conftest import Open
from tests.cluster.dashboard.sample_run import STORED, write_sample_run


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder of runs that is mounted read-only; not even root can write to it."""
    source, target = tmp_path / "source", tmp_path / "mounted"
    write_sample_run(source / "sample")
    (source / "sample" / "requests").mkdir(exist_ok=True)
    target.mkdir()
    for words in (["--bind", str(source)], ["-o", "remount,ro,bind"]):
        made = subprocess.run(["mount", *words, str(target)], capture_output=True, check=False)
        if made.returncode:
            with suppress(subprocess.SubprocessError):
                subprocess.run(["umount", str(target)], capture_output=True, check=False)
            pytest.skip(f"needs the right to mount: {made.stderr.decode().strip()}")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (target / "sample" / "file").touch()
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_everything_is_shown_and_nothing_is_written(mounted: Path, open_dashboard: Open) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in sorted(mounted.rglob("*"))}
    found = open_dashboard(mounted)
    found.read()
    rows = found.rows()
    assert len(rows) == STORED
    for route in ("overview", "ledger", "logs", "tools", "fleet", "audit", "config", "groups"):
        found.get(f"{found.run}/{route}")
    found.get(f"{found.run}/episode", id=rows[0]["episode"])
    assert found.get(f"{found.run}/health")["problems"] == []
    answer = found.client.post(
        f"/api/v1{found.run}/sft-set",
        json={"filter": "", "name": "good", "only_correct": True},
        headers={"origin": "http://127.0.0.1:8365"},
    )
    problem = answer.json()
    assert 400 <= answer.status_code < 500 and problem["fix"], problem
    assert "read-only" in problem["detail"].lower(), problem
    assert {path: os.stat(path).st_mtime_ns for path in sorted(mounted.rglob("*"))} == before


def test_a_snapshot_is_made_of_it(mounted: Path, tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    wanted = Bundle(path=mounted / "sample", target=tmp_path / "x.html")
    assert write_bundle(wanted, environ)["episodes"] == STORED
