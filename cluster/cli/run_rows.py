"""Runs and jobs as rows: what `runs`, `status` and `stop` print."""

from pathlib import Path
from typing import Any

from cluster.jobs.directories import RunStatus, status_of
from envs.errors import TrialrunError
from envs.tools import JsonObject


def row_of(path: Path) -> JsonObject:
    """Return the row of a run directory, also of one that cannot be read."""
    try:
        return run_row(status_of(path))
    except TrialrunError as error:
        where = {"name": path.name, "kind": "?", "step": "?", "run_dir": str(path)}
        return {**where, "state": "unreadable", "problem": str(error)}


def run_row(found: RunStatus) -> JsonObject:
    """Return what a run directory says about its run."""
    writer = found.writer
    return {
        "name": found.name,
        "kind": str(found.kind),
        "state": found.state,
        "step": found.step,
        "steps": found.steps,
        "last_step": dict(found.newest),
        "run_dir": str(found.path),
        "checkpoint": str(found.checkpoint) if found.checkpoint else None,
        "model": str(found.model) if found.model else None,
        "job": writer.submission_id or None if writer else None,
        "process": f"{writer.pid} on {writer.host}" if writer else None,
    }


def job_row(job: Any) -> JsonObject:
    """Return what is known of a job (Job of ray_jobs) whose run directory is not seen here."""
    return {
        "name": job.run,
        "kind": job.command,
        "state": job.status.lower(),
        "step": "?",
        "steps": None,
        "run_dir": job.directory,
        "job": job.id,
    }
