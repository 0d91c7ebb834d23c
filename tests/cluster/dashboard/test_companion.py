"""The dashboard beside a command: it comes, is lost and goes without a trace in the command."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from cluster.cli.beside import dashboard_beside
from cluster.config.places import JOB_MARK
from tests.cluster.dashboard.sample_run import write_sample_run
from tests.waiting import expect_within

_READY_S = 60.0
_ADDRESS = re.compile(r"dashboard {2}(http://127\.0\.0\.1:\d+)/#token=(\S+)")


class Said:
    """What a command has printed on standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self.text = capsys, ""

    def has(self, pattern: "re.Pattern[str]") -> "re.Match[str] | None":
        self.text += self._capsys.readouterr().err
        return pattern.search(self.text)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {}


def address_of(said: Said) -> tuple[str, dict[str, str]]:
    expect_within(_READY_S, lambda: said.has(_ADDRESS) is not None)
    found = said.has(_ADDRESS)
    assert found is not None
    return found[1], {"authorization": f"Bearer {found[2]}"}


def companions() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "cluster.dashboard.companion" in " ".join(child.cmdline())
    ]


def test_it_shows_a_run_that_begins_after_it_and_ends_with_the_command(
    tmp_path: Path, said: Said, environ: dict[str, str]
) -> None:
    folder = tmp_path / "runs" / "first"
    with dashboard_beside(folder, environ, wanted=None):
        base, headers = address_of(said)
        assert httpx.get(f"{base}/api/v1/runs", headers=headers).json()["runs"] == []
        write_sample_run(folder)

        def names() -> list[str]:
            rows = httpx.get(f"{base}/api/v1/runs", headers=headers).json()["runs"]
            return [row["name"] for row in rows]

        expect_within(20, lambda: names() == ["first"])
        (companion,) = companions()
        assert companion.nice() > psutil.Process().nice()
        group = Path(f"/proc/{companion.pid}/autogroup")
        assert not group.exists() or group.read_text().endswith("nice 19\n")
    assert not companion.is_running() and companions() == []
    assert "goes on without it" not in said.text


def test_its_loss_is_said_once_and_disturbs_nothing(
    tmp_path: Path, said: Said, environ: dict[str, str]
) -> None:
    with dashboard_beside(tmp_path, environ, wanted=True):
        address_of(said)
        (companion,) = companions()
        companion.kill()
        lost = re.compile("the dashboard ended, the run goes on without it")
        expect_within(20, lambda: said.has(lost) is not None)
    assert said.text.count("goes on without it") == 1


def test_it_ends_when_its_command_is_killed(tmp_path: Path, environ: dict[str, str]) -> None:
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from cluster.cli.beside import dashboard_beside\n"
        f"with dashboard_beside(Path({str(tmp_path)!r}), {{}}, wanted=None):\n"
        "    time.sleep(600)\n"
    )
    command = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    try:
        assert command.stderr is not None
        assert _ADDRESS.search(command.stderr.readline().decode())
        (companion,) = psutil.Process(command.pid).children()
    finally:
        os.kill(command.pid, signal.SIGKILL)
        command.communicate(timeout=30)
    companion.wait(20)


def test_a_ray_job_has_none_unless_it_is_wanted(tmp_path: Path, said: Said) -> None:
    with dashboard_beside(tmp_path, {JOB_MARK: "{}"}, wanted=None):
        assert companions() == []
    with dashboard_beside(tmp_path, {}, wanted=False):
        assert companions() == []
    with dashboard_beside(tmp_path, {JOB_MARK: "{}"}, wanted=True):
        assert len(companions()) == 1
    assert companions() == []


def test_without_its_packages_one_line_says_how_to_get_them(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)  # as if it were not installed
    with dashboard_beside(tmp_path, {}, wanted=None):
        assert companions() == []
    assert said.has(re.compile(r"^no dashboard: duckdb .*'trialrun\[dashboard\]'.*\n\Z"))


def test_a_run_whose_dashboard_cannot_start_goes_on(
    tmp_path: Path, said: Said, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with dashboard_beside(tmp_path, environ, wanted=None):
        lost = re.compile("the run goes on without it. .*cannot write the index")
        expect_within(_READY_S, lambda: said.has(lost) is not None)
