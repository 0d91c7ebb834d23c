"""The jobs of a Ray cluster, through its Jobs API."""

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.config.run_config import RunConfig
from cluster.fleet.ray_address import check_ray_address, own_cluster
from cluster.jobs.directories import RUN_DIRECTORY_IS
from cluster.jobs.submission import COMMAND, DIRECTORY, NAME, Submission, command_of, write_upload
from envs.errors import DeadlineError, InfraError, MissingError

API_ADDRESS = "RAY_API_SERVER_ADDRESS"
ADDRESS = "RAY_ADDRESS"
_REACH_S = 10.0
_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that makes a run."""

    id: str
    status: str
    """Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    run: str
    """Name of its run; empty while it is not known."""
    directory: str
    """Absolute path of its run directory on the cluster; empty while it is not known."""
    command: str
    entrypoint: str
    started_at: float
    """Unix seconds."""

    @property
    def ended(self) -> bool:
        return JobStatus(self.status).is_terminal()


class RayJobs:
    """The jobs of one cluster."""

    def __init__(self, client: JobSubmissionClient, address: str) -> None:
        self._client = client
        self.address = address

    @classmethod
    def at(cls, address: str = "") -> "RayJobs":
        """Connect to the cluster at `address`, an `http://HEAD:8265` or the head's `HOST:6379`.

        Without one it is that of RAY_API_SERVER_ADDRESS or RAY_ADDRESS, or else the cluster that
        this user has started on this machine. Raises MissingError where none answers.
        """
        found = address or os.environ.get(API_ADDRESS, "") or os.environ.get(ADDRESS, "")
        found = own_cluster() if found in ("", "auto") else found.strip()
        if "://" in found:
            _check_url(found)
        else:
            check_ray_address(found)
        for chatty in ("job.sdk", "dashboard_sdk"):  # they set a level of their own
            logging.getLogger(f"ray.dashboard.modules.{chatty}").setLevel(logging.WARNING)
        with _as_given(found):
            try:
                return cls(JobSubmissionClient(found), found)
            except Exception as error:  # Ray raises several types for this
                raise MissingError(
                    f"no Jobs API for the Ray cluster at {found}: {_one_line(error)}; give the "
                    "address of its dashboard, --address http://HEAD:8265"
                ) from error

    def submit(self, job: Submission, config: RunConfig | None = None) -> str:
        """Submit a job, with `config` as its recipe; return its id. Raises InfraError."""
        with TemporaryDirectory(prefix="trialrun-") as folder:
            environment: dict[str, Any] = dict(job.runtime_env)
            if config is not None:
                write_upload(config, Path(folder))
                environment["working_dir"] = folder
            with self._answering("take the job"):
                return self._client.submit_job(
                    entrypoint=job.entrypoint, runtime_env=environment, metadata=job.metadata
                )

    def jobs(self) -> list[Job]:
        """Return the jobs that make runs, the newest first."""
        with self._answering("list its jobs"):
            found = [details for details in self._client.list_jobs() if details.submission_id]
        ours = [details for details in found if command_of(details.entrypoint or "")]
        jobs = [self._job(details) for details in ours]
        return sorted(jobs, key=lambda job: job.started_at, reverse=True)

    def job(self, submission_id: str) -> Job:
        """Return one job. Raises InfraError, also where the cluster has no such job."""
        with self._answering(f"find the job {submission_id}"):
            return self._job(self._client.get_job_info(submission_id))

    def logs(self, job: Job) -> str:
        """Return what the job has printed so far."""
        with self._answering("show a log"):
            return self._client.get_job_logs(job.id)

    async def follow(self, job: Job) -> AsyncIterator[str]:
        """Yield what the job prints, until it ends."""
        async for lines in self._client.tail_job_logs(job.id):
            yield lines

    def stop(self, job: Job) -> None:
        """Ask Ray to stop a job, which gets SIGTERM."""
        with self._answering("stop the job"):
            self._client.stop_job(job.id)

    def wait_for_end(self, submission_id: str, deadline_s: float) -> Job:
        """Wait until a job has ended. Raises DeadlineError."""
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            if (job := self.job(submission_id)).ended:
                return job
            time.sleep(_POLL_S)
        raise DeadlineError(f"the job {submission_id} did not end within {deadline_s:g} s")

    def _job(self, details: JobDetails) -> Job:
        metadata, entrypoint = details.metadata or {}, details.entrypoint or ""
        directory = metadata.get(DIRECTORY, "") or self._directory_in_log(details)
        return Job(
            id=str(details.submission_id),
            status=str(details.status.value),
            message=details.message or "",
            run=metadata.get(NAME, "") or Path(directory).name,
            directory=directory,
            command=metadata.get(COMMAND, "") or command_of(entrypoint),
            entrypoint=entrypoint,
            started_at=(details.start_time or 0) / 1000,
        )

    def _directory_in_log(self, details: JobDetails) -> str:
        """Return the run directory that a job submitted with `ray job submit` has printed."""
        if not command_of(details.entrypoint or ""):
            return ""
        with self._answering("show a log"):
            text = self._client.get_job_logs(str(details.submission_id))
        _, found, after = text.partition(RUN_DIRECTORY_IS)
        return after.splitlines()[0].strip() if found and after else ""

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, RayError, OSError) as error:
            raise InfraError(
                f"the Ray cluster at {self.address} did not {what}: {_one_line(error)}"
            ) from error


@contextmanager
def _as_given(address: str) -> Iterator[None]:
    """Let the client take `address`: it prefers the environment to its argument."""
    kept = {name: os.environ.pop(name, None) for name in (API_ADDRESS, ADDRESS)}
    os.environ[API_ADDRESS] = address
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _check_url(address: str) -> None:
    """Raise MissingError where nobody listens: the client itself would try for long."""
    if not address.startswith(("http://", "https://")):
        raise MissingError(
            f"expected http://HEAD:8265 or HEAD:6379 as the address of a cluster, found {address}"
        )
    try:
        httpx.get(f"{address.rstrip('/')}/api/version", timeout=_REACH_S)
    except httpx.HTTPError as error:
        timed_out = isinstance(error, httpx.TimeoutException)
        cause = f"no answer within {_REACH_S:g} s" if timed_out else "nothing answers there"
        raise MissingError(
            f"no Ray dashboard at {address}: {cause}. Is its port 8265 reachable from here? `ray "
            "start --head --dashboard-host=0.0.0.0` opens it, or `ssh -L 8265:localhost:8265 HEAD`"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:600] or type(error).__name__
