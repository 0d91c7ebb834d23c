"""What a run's name stands for: its directory, if this machine sees it, and its job."""

import os
from pathlib import Path
from typing import Any

from cluster.cli.command_line import stack
from cluster.cli.mirrors import Needs, local_run
from cluster.cli.path_checks import run_at
from cluster.config.places import home
from cluster.fleet.ray_address import own_cluster
from cluster.jobs.directories import find_run
from cluster.lifecycle.trust import knows_writer
from cluster.lifecycle.writer import Writer, read_writer
from envs.errors import MissingError, TrialrunError
from rollout.mirror.address import is_address
from rollout.store.run_layout import RunLayout


class Target:
    """A run, as far as this machine can reach it."""

    def __init__(self, layout: RunLayout | None, address: str, found: tuple[Any, Any]) -> None:
        self.layout = layout
        """The run directory; None where this machine does not see it."""
        self._address = address
        self._jobs, self._job = found

    @property
    def jobs(self) -> Any:
        """The cluster's jobs (RayJobs). Raises MissingError where no cluster answers."""
        if self._jobs is None:
            self._jobs = _connect(self._address)
        return self._jobs

    def job(self, *, needed: bool) -> Any:
        """Return the run's last job. Raises MissingError where it is `needed` and there is none.

        Where it is not needed and no cluster is named, None.
        """
        if self._job is not None:
            return self._job
        assert self.layout is not None, "a run without directory was found by its job"
        if self.layout.mirror_copy.exists() and not needed:
            return None
        writer = read_writer(self.layout)
        if writer is None or not writer.submission_id:
            if not needed:
                return None
            where = f": process {writer.pid} on {writer.host} has" if writer else ", and it has"
            raise MissingError(
                f"the run in {self.layout.root} was not started as a Ray job{where} written to the "
                "terminal where it was started"
            )
        try:
            if self._jobs is None:
                self._jobs = _connect(self._address or self._cluster_of(writer))
            self._job = self._jobs.job(writer.submission_id)
        except TrialrunError:
            if needed:
                raise
        return self._job

    def _cluster_of(self, writer: Writer) -> str:
        """Return the cluster that a run says it is on, which gets this user's token.

        Raises MissingError where somebody else may have written that.
        """
        assert self.layout is not None, "the caller has it"
        if not writer.ray_address or knows_writer(self.layout):
            return writer.ray_address
        raise MissingError(
            f"the run in {self.layout.root} says that it is on the cluster at "
            f"{writer.ray_address}, and has no signature of yours: name the cluster with "
            "--address, if it is one of yours"
        )


def find_target(name: str, address: str, needs: Needs = Needs.STATUS) -> Target:
    """Return the run that `name` names, by its directory, its mirror or a job of the cluster.

    Raises MissingError where there is neither, ConfigError where several runs have the name.
    """
    if is_address(name):
        return Target(RunLayout(local_run(name, needs)), address, (None, None))
    folders = [home(os.environ) / "runs"]
    if (found := find_run(name, folders)) is not None:
        return Target(RunLayout(found), address, (None, None))
    if "/" in name or Path(name).is_dir():
        run_at(Path(name))  # it says what is wrong with the path
    jobs = _jobs_for_a_name(address)
    if jobs is None:
        raise MissingError(
            f"expected a run, found none called {name!r} in {folders[0]}: give its path, or the "
            "cluster that runs it, with --address http://HEAD:8265"
        )
    job = next((job for job in jobs.jobs() if job.run == name), None)
    if job is None:
        raise MissingError(
            f"expected a run, found none called {name!r} in {folders[0]}, and no such job on the "
            f"cluster at {jobs.address}: `trialrun runs --address {jobs.address}` lists them"
        )
    layout = RunLayout(Path(job.directory)) if job.directory else None
    seen = layout if layout is not None and layout.run_json.exists() else None
    return Target(seen, address, (jobs, job))


def _jobs_for_a_name(address: str) -> Any:
    """Return the jobs of the cluster that is named, or of one's own on this machine; else None."""
    if address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS"):
        return _connect(address)
    try:
        return _connect(own_cluster())
    except MissingError:  # it was not asked for
        return None


def _connect(address: str) -> Any:
    return stack("jobs.ray_jobs").RayJobs.at(address)
