"""Jobs as the commands see them; `Client` stands for Ray's."""

import io
import json
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType
from rich.console import Console

from cluster.cli.main import main
from cluster.cli.run_target import Target, find_target
from cluster.cli.steering import _steer_there
from cluster.config.run_config import load_config
from cluster.jobs.directories import RUN_DIRECTORY_IS
from cluster.jobs.ray_jobs import RayJobs
from cluster.jobs.submission import RECIPE, training
from cluster.lifecycle.opening import new_run
from cluster.progress import Progress
from envs.errors import DeadlineError, InfraError, MissingError
from rollout.store.control import CheckpointRequest, ScaleByRequest, ScaleRequest
from rollout.store.run_layout import RunKind, RunLayout

OURS = {"trialrun_run": "first", "trialrun_dir": "/shared/runs/first", "trialrun_command": "train"}


def details(name: str, status: JobStatus, entrypoint: str, **more: Any) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION, submission_id=name, status=status, entrypoint=entrypoint, **more
    )


@dataclass
class Client:
    """A cluster's Jobs API; a job that is submitted ends at once as `ends` says."""

    found: list[JobDetails] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    ends: JobStatus = JobStatus.SUCCEEDED
    uploaded: list[str] = field(default_factory=list)

    def list_jobs(self) -> list[JobDetails]:
        return self.found

    def get_job_info(self, name: str) -> JobDetails:
        for one in self.found:
            if one.submission_id == name:
                return one
        raise RuntimeError("Request failed with status code 404:\n no such job")

    def get_job_logs(self, name: str) -> str:
        return self.logs.get(name, "")

    def submit_job(
        self, *, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> str:
        folder = runtime_env.get("working_dir")
        self.uploaded += [path.name for path in Path(folder).iterdir()] if folder else []
        name = f"job-{len(self.found)}"
        self.found.append(details(name, self.ends, entrypoint, metadata=metadata))
        return name


@pytest.fixture
def client() -> Client:
    """Three jobs, of which the last is no run."""
    return Client(
        found=[
            details("a", JobStatus.FAILED, "x/trialrun train r", metadata=OURS, start_time=1_000),
            details("b", JobStatus.RUNNING, "trialrun train catalog", start_time=2_000),
            details("c", JobStatus.RUNNING, "python serve.py", start_time=3_000),
        ],
        logs={"b": f"loading\nstarting Ray; {RUN_DIRECTORY_IS}/shared/runs/second\nstep 1/3\n"},
    )


def jobs_of(client: Client) -> RayJobs:
    return RayJobs(cast(JobSubmissionClient, client), "http://head:8265")


def test_jobs_of_both_ways_are_listed_with_their_runs_the_newest_first(client: Client) -> None:
    found = jobs_of(client).jobs()
    assert [(job.id, job.run, job.directory, job.ended) for job in found] == [
        ("b", "second", "/shared/runs/second", False),
        ("a", "first", "/shared/runs/first", True),
    ]
    client.logs.clear()
    assert [job.directory for job in jobs_of(client).jobs()] == ["", "/shared/runs/first"]


def test_only_the_recipe_is_uploaded(client: Client) -> None:
    config = load_config("catalog")
    name = jobs_of(client).submit(training(config, ["trialrun"], {}), config)
    assert client.uploaded == [RECIPE]
    assert jobs_of(client).job(name).run == "catalog"


def test_a_job_that_is_not_there_or_does_not_end_is_one_line(client: Client) -> None:
    with pytest.raises(InfraError, match=r"did not find the job x: .* no such job"):
        jobs_of(client).job("x")
    with pytest.raises(DeadlineError, match="job b did not end"):
        jobs_of(client).wait_for_end("b", 0.01)


def test_a_run_that_only_the_cluster_sees_is_scaled_there(client: Client) -> None:
    jobs = jobs_of(client)
    target = Target(None, "", (jobs, jobs.job("b")))
    _steer_there(target, "scale", ScaleRequest(workers=3), 1.0, wait=False)
    assert client.found[-1].entrypoint == "trialrun scale /shared/runs/second 3"
    _steer_there(target, "scale", ScaleRequest(workers=0, group="big", abort=True), 1.0, wait=False)
    assert client.found[-1].entrypoint == "trialrun scale /shared/runs/second big=0 --abort"
    _steer_there(target, "checkpoint", CheckpointRequest(), 1.0, wait=True)
    assert client.found[-1].entrypoint == "trialrun checkpoint /shared/runs/second --wait"
    client.ends = JobStatus.FAILED
    client.logs["job-6"] = "error: refused\n"
    with pytest.raises(InfraError, match="did not scale second: error: refused"):
        _steer_there(target, "scale", ScaleByRequest(change=-1), 1.0, wait=False)


def test_a_run_of_a_terminal_has_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("catalog", [f"run.dir={tmp_path}"])
    new_run(config.path, config, RunKind.TRAIN).close()
    target = find_target(str(config.path), "")
    assert target.job(needed=False) is None
    with pytest.raises(MissingError, match="was not started as a Ray job"):
        target.job(needed=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: [])
    with pytest.raises(MissingError, match=r"none called 'nowhere' in .*with --address"):
        find_target("nowhere", "")


def test_the_log_of_a_run_of_a_terminal_is_in_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config("catalog", [f"run.dir={tmp_path}"])
    new_run(config.path, config, RunKind.TRAIN).close()
    progress = Progress(console=Console(file=io.StringIO()))
    progress.say("before the run is open")
    with pytest.raises(InfraError), progress.logged(RunLayout(config.path).log):
        progress.say("step 1/2 [all of it]")
        raise InfraError("the disk is full")
    progress.say("after it is closed")
    for option in ((), ("--follow",)):
        monkeypatch.setattr("sys.argv", ["trialrun", "logs", str(config.path), *option])
        with pytest.raises(SystemExit):
            main()
        lines = capsys.readouterr().out.splitlines()
        assert [line[20:] for line in lines] == [
            "before the run is open",
            "step 1/2 [all of it]",
            "error: the disk is full",
        ]


def test_a_damaged_run_is_listed_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config("catalog", [f"run.dir={tmp_path}"])
    new_run(config.path, config, RunKind.TRAIN).close()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    monkeypatch.setattr("sys.argv", ["trialrun", "runs", str(tmp_path), "--json"])
    with pytest.raises(SystemExit):
        main()
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [(row["name"], row["state"]) for row in rows] == [
        ("catalog", "failed start"),
        ("damaged", "unreadable"),
    ]


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}"])
def test_an_address_where_nothing_answers_is_said_at_once(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
    with pytest.raises(MissingError, match="nothing answers there"):
        RayJobs.at(address)


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(MissingError, match="expected http://HEAD:8265 or HEAD:6379"):
        RayJobs.at("ray://head:10001")
