"""`writer.json`: which process wrote to a run last, and through which Ray job it can be reached."""

import json
import os
import socket
import time
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config.places import JOB_MARK
from rollout.store.journal import replace_file
from rollout.store.run_layout import RunLayout
from rollout.store.shared_files import read_bytes


class Writer(BaseModel):
    """The process that has, or last had, a run directory open for writing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    pid: int
    started_at: float
    """Unix seconds."""
    submission_id: str = ""
    """Id of its Ray job; empty for a command that was typed at a terminal."""
    ray_address: str = ""
    """HOST:PORT of the head of the cluster that it joined; empty for a Ray of its own."""


def this_writer(environ: Mapping[str, str]) -> Writer:
    """Return this process as a writer."""
    try:
        job = json.loads(environ.get(JOB_MARK, "{}")).get("metadata", {})
    except (json.JSONDecodeError, AttributeError):
        job = {}
    return Writer(
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=time.time(),
        submission_id=str(job.get("job_submission_id", "")),
        ray_address=environ.get("RAY_ADDRESS", "").strip(),
    )


def record_writer(layout: RunLayout, environ: Mapping[str, str]) -> None:
    """Note in the run directory that this process writes to it from now on."""
    replace_file(layout.writer, this_writer(environ).model_dump_json(indent=2).encode())


def read_writer(layout: RunLayout) -> Writer | None:
    """Return the last writer; None in a run of an older version, or where the file is damaged."""
    try:
        return Writer.model_validate_json(read_bytes(layout.writer))
    except (FileNotFoundError, ValidationError):
        return None
