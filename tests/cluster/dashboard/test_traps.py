"""A run directory of somebody else, in which files are links or named pipes."""

import os
from pathlib import Path

import pytest

from tests.cluster.dashboard.conftest import Open
from tests.cluster.dashboard.sample_run import write_sample_run

pytestmark = pytest.mark.timeout(60)
SECRET = "what the reader has in a file elsewhere"
ROUTES = (
    *("", "/episodes", "/facets", "/overview", "/health", "/ledger", "/config", "/logs"),
    *("/groups", "/tools", "/fleet", "/audit", "/evaluation", "/metrics"),
)


@pytest.mark.parametrize("trap", ["link", "pipe"])
def test_no_trap_leads_elsewhere_or_holds_the_dashboard_up(
    tmp_path: Path, open_dashboard: Open, trap: str
) -> None:
    path, victim = tmp_path / "runs" / "sample", tmp_path / "victim"
    write_sample_run(path)
    victim.write_text(f"[{SECRET}]\n")
    (path / "eval.json").write_text("{}")
    (path / "log.txt").write_text("a line\n")
    for file in [file for file in path.rglob("*") if file.is_file() and file.name != "run.json"]:
        file.unlink()
        if trap == "link":
            file.symlink_to(victim)
        else:
            os.mkfifo(file)
    found = open_dashboard(path.parent)
    (run,) = found.get("/runs")["runs"]
    for route in ROUTES:
        answer = found.client.get(f"/api/v1/runs/{run['id']}{route}")
        assert answer.status_code < 500, (route, answer.text)
        assert SECRET not in answer.text, route
