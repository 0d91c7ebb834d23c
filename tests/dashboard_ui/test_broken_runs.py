"""Killed, damaged, copied and older runs, looked at in the browser."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser

from tests.cluster.dashboard.sample_run import STORED, write_sample_run
from tests.dashboard_ui.conftest import WATCH, Visit
from tests.dashboard_ui.sites import OPERATOR, served
from tests.project_tree import ROOT
from tests.waiting import expect_within

OLD_RUNS = ROOT / "tests" / "cluster" / "lifecycle" / "old_runs"
PAGES = ("overview", "episodes", "groups", "tools", "ledger", "fleet", "metrics", "logs", "config")
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
WRITER = """
import sys
from pathlib import Path
from tests.benchmarks.big_run import Sizes, write_big_run
write_big_run(Path(sys.argv[1]), Sizes(10**6), per_second=500.0)
"""


def killed(path: Path) -> None:
    """Write a run in a process of its own, and kill that while it writes."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        index = path / "index" / "000001.jsonl"
        expect_within(90, lambda: index.exists() and index.read_bytes().count(b"\n") > 300)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(10.0)
    # As a kill leaves it that comes in the middle of a message.
    segment = max((path / "episodes").glob("*.arrows"))
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 100)


def corrupted(path: Path) -> None:
    write_sample_run(path)
    (segment,) = (path / "episodes").glob("*.arrows")
    content = bytearray(segment.read_bytes())
    middle = bytes(content).index(b"try 2", len(content) // 2)
    for place in range(middle - 400, middle + 400):
        content[place] ^= 0x5A
    segment.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve such runs; return the address."""
    root = tmp_path_factory.mktemp("broken")
    killed(root / "killed")
    corrupted(root / "corrupted")
    write_sample_run(root / "original")
    shutil.copytree(root / "original", root / "copied")
    shutil.copytree(OLD_RUNS / "train", root / "older")
    with served([root], tmp_path_factory.mktemp("cache")) as url:
        yield url


def test_what_is_whole_is_shown_and_what_is_not_is_said(chromium: Browser, broken: str) -> None:
    headers = {"authorization": f"Bearer {OPERATOR}"}
    with httpx.Client(base_url=f"{broken}/api/v1", headers=headers, timeout=30) as client:
        runs = {run["name"]: run["id"] for run in client.get("/runs").json()["runs"]}
        assert sorted(runs) == ["copied", "corrupted", "killed", "older", "original"]

        def read(run: str) -> bool:
            answer = client.get(f"/runs/{run}/health").json()
            return bool(answer.get("coverage", {}).get("complete"))

        for run in runs.values():
            expect_within(60, lambda run=run: read(run))
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    context.add_init_script(WATCH)
    seen = Visit(context.new_page(), broken)
    seen.sign_in()
    try:
        for name, run in runs.items():
            for page in PAGES:
                seen.open(f"/runs/{run}/{page}")
                assert seen.page.locator("[role=alert]").count() == 0, (name, page)
        seen.open(f"/runs/{runs['killed']}/overview")
        seen.page.locator(".side .badge", has_text="stopped").wait_for()
        seen.open(f"/runs/{runs['killed']}/health")
        assert "are no whole episode" in seen.text or "beyond its end" in seen.text
        seen.open(f"/runs/{runs['corrupted']}/episodes")
        assert f"{STORED} episodes" in seen.text
        seen.page.get_by_role("link", name="Problems (").click()
        seen.page.get_by_text("are damaged").first.wait_for()
        seen.open(f"/runs/{runs['corrupted']}/episodes?filter=error%3D%22damaged%22")
        seen.page.locator("a[href*='/episode?']").first.click()
        seen.page.get_by_text("every episode that is whole").or_(
            seen.page.get_by_text("everything that is whole is shown")
        ).first.wait_for()
        for name in ("copied", "original"):
            seen.open(f"/runs/{runs[name]}/episodes")
            assert f"{STORED} episodes" in seen.text
    finally:
        context.close()
    assert seen.complaints == []
