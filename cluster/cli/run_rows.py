"""Runs and jobs as rows: what `runs`, `status` and `stop` print."""

from pathlib import Path
from typing import Any

from cluster.jobs.directories import RunStatus, status_of
from cluster.lifecycle.writer import Writer
from envs.errors import TrialrunError
from envs.tools import JsonObject
from rollout.store.control import is_paused
from rollout.store.run_layout import RunLayout


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
    if found.mirror and RunLayout(found.path).mirror_copy.exists():
        return {**_row(found, writer), **_places_on(found)}
    return _row(found, writer)


def _row(found: RunStatus, writer: Writer | None) -> JsonObject:
    mirrored = {"mirror": found.mirror, "mirror_state": found.mirror_state}
    health = found.health
    layout = RunLayout(found.path)
    paused = found.state == "running" and not layout.mirror_copy.exists() and is_paused(layout)
    problems: JsonObject = {"trained_nothing": found.trained_nothing or None}
    if health is not None:
        problems |= {
            "doing": health.doing,
            "stalled": health.stalled or None,
            "failing": health.failing or None,
            "workers": [worker.describe() for worker in health.workers],
            "wanted_workers": dict(health.wanted),
            "quarantined": [*health.quarantined],
        }
    return {
        "name": found.name,
        "kind": str(found.kind),
        "state": "paused" if paused else found.state,
        "step": found.step,
        "steps": found.steps,
        "last_step": dict(found.newest),
        "run_dir": str(found.path),
        "checkpoint": str(found.checkpoint) if found.checkpoint else None,
        "model": str(found.model) if found.model else None,
        "job": writer.submission_id or None if writer else None,
        "process": f"{writer.pid} on {writer.host}" if writer else None,
        **(mirrored if found.mirror else {}),
        **{key: value for key, value in problems.items() if value},
    }


def _places_on(found: RunStatus) -> JsonObject:
    """Return the places of a run on its mirror, instead of those of the copy."""
    address = found.mirror.partition("?")[0]
    return {
        "run_dir": address,
        "checkpoint": f"{address}/checkpoints/{found.checkpoint.name}"
        if found.checkpoint
        else None,
        "model": f"{address}/model" if found.model else None,
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
