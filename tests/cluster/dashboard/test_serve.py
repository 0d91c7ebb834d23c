"""The dashboard as its own process: started, killed, two at once, beside a job that is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.dashboard.process import DashboardProcess, run_command
from tests.cluster.dashboard.sample_run import STORED, write_group, write_sample_run
from tests.waiting import expect_within

pytestmark = pytest.mark.real
WRITER = """
import sys
from pathlib import Path
from tests.benchmarks.big_run import Sizes, write_big_run
write_big_run(Path(sys.argv[1]), Sizes(10**6), per_second=2_000.0)
"""
IMPORTS = """
import sys
import cluster.cli.main, cluster.dashboard.serve
print(*sorted({"torch", "ray", "vllm", "deepspeed", "transformers"} & set(sys.modules)))
"""


def test_the_recording_is_shown_without_a_run(tmp_path: Path) -> None:
    served = DashboardProcess("--demo", "--cache", str(tmp_path / "cache"))
    try:
        runs = {run["name"]: run for run in served.get("/runs")["runs"]}
        assert {run["kind"] for run in runs.values()} == {"train", "eval"}
        train = f"/runs/{runs['train']['id']}"
        expect_within(20, lambda: served.get(f"{train}/health")["coverage"]["complete"])
        health = served.get(f"{train}/health")
        assert health["problems"] == []
        assert health["coverage"]["episodes"] > 300
        assert served.get(f"{train}/overview")["bottleneck"]["share"] is not None
        row = served.get(f"{train}/episodes", filter="state=trained")["rows"][0]
        accept = {"accept": "application/json"}
        parameters = {"id": row["episode"], "texts": True}
        found = served.client.get(
            f"/api/v1{train}/episode/tokens", params=parameters, headers=accept
        ).json()
        assert len(found["text"]) == row["tokens"]
        assert any(value is not None for value in found["advantage"])
        evals = [run["id"] for run in runs.values() if run["kind"] == "eval"]
        for name in evals:
            expect_within(
                20, lambda name=name: served.get(f"/runs/{name}/health")["coverage"]["complete"]
            )
        compared = served.get("/compare", run=evals)
        assert compared["shared"] == 40
        assert compared["won"] + compared["lost"] + compared["tied"] == 40
        assert not served.get("/session")["can_write"]
        steer = served.client.post(f"/api/v1{train}/steer", json={"kind": "stop"})
        assert (steer.status_code, steer.json()["code"]) == (403, "demo")
        (folder,) = {Path(run["path"]).parent for run in runs.values()}
        assert folder.exists()
    finally:
        code, errors = served.stop()
    assert (code, errors) == (0, "")
    assert not folder.exists()


def test_a_killed_dashboard_goes_on_where_it_was(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "runs" / "sample", close=False)
    arguments = (str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"))
    first = DashboardProcess(*arguments)
    address = f"/runs/{first.get('/runs')['runs'][0]['id']}"
    expect_within(20, lambda: first.get(f"{address}/health")["coverage"]["complete"])
    first.kill()
    write_group(run, 7)
    second = DashboardProcess(*arguments)
    try:
        expect_within(20, lambda: second.get(f"{address}/health")["coverage"]["complete"])
        page = second.get(f"{address}/episodes", limit=500)
        assert page["total"] == STORED + 4
        assert len({row["uid"] for row in page["rows"]}) == STORED + 4
        third = DashboardProcess(*arguments)  # while the second has the index open
        try:
            assert third.get(f"{address}/episodes")["total"] == STORED + 4
        finally:
            assert third.stop() == (0, "")
    finally:
        assert second.stop() == (0, "")
    run.close()
    assert len(list((tmp_path / "cache").glob("*.duckdb"))) == 1


def test_a_job_that_is_killed_while_it_writes_leaves_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "big"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    served = None
    try:
        expect_within(60, lambda: (path / "metrics" / "metrics.jsonl").exists())
        served = DashboardProcess(str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"))
        address = f"/runs/{served.get('/runs')['runs'][0]['id']}"
        expect_within(60, lambda: served.get(f"{address}/episodes")["total"] > 1_000)
        assert served.get(address)["state"] == "running"
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(10.0)
        lines = (path / "index" / "000001.jsonl").read_bytes().count(b"\n")
        expect_within(20, lambda: served.get(f"{address}/episodes")["total"] >= lines)
        assert served.get(address)["state"] == "stopped"
        expect_within(60, lambda: served.get(f"{address}/health")["coverage"]["complete"])
        assert {p["severity"] for p in served.get(f"{address}/health")["problems"]} <= {"note"}
    finally:
        writer.kill()
        writer.wait(10.0)
        if served is not None:
            assert served.stop() == (0, "")


def test_the_stack_that_trains_is_not_imported() -> None:
    found = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.split() == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--host", "0.0.0.0"], 2, "TRIALRUN_DASHBOARD_TOKEN"),
        (["nowhere"], 3, "--demo"),
        (["--origin", "example.org"], 2, "--origin"),
        (["--host", "example.org"], 2, "IP address"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "runs").mkdir()
    done = run_command(*arguments, cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_the_printed_lines_carry_the_token_behind_the_hash(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", "from cluster.cli.main import main; main()", "dashboard",
         str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("dashboard  http://127.0.0.1:")
        assert "/#token=" in first
        rest = [process.stdout.readline() for _ in range(3)]
        assert any("ssh -L" in line for line in rest)
        assert any("kubectl port-forward" in line for line in rest)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30.0) == 0
