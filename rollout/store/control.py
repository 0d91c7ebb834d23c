"""Requests to a job at work: files in its run directory, answered in its control journal.

Whoever may write to the run directory may ask; no port is opened. A request is one file, whole or
not there, which the job removes as it takes it.
"""

import secrets
import time
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, ValidationError

from envs.errors import DeadlineError, MissingError
from rollout.store.journal import make_folder, read_objects, replace_file
from rollout.store.run_layout import RunLayout
from rollout.store.run_lock import is_written

SCALE = "scale"
"""The action whose detail is a number of rollout workers."""

_LOOK_EVERY_S = 0.1
_LARGEST_BYTES = 65_536


class ControlEvent(BaseModel):
    """Somebody asked something of a running job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: float
    """Unix seconds."""
    actor: str
    action: str
    detail: str = ""
    request: str = ""
    """Id of the request that this answers."""
    refused: str = ""
    """Why nothing was done; empty where it was."""
    note: str = ""
    """What who asked should know beside that."""


def ask(layout: RunLayout, event: ControlEvent, deadline_s: float) -> ControlEvent:
    """Ask the job that writes to the run for what `event` says, and return its answer.

    Raises MissingError where no job is at work, StoreError where the run cannot be written to, and
    DeadlineError, the request taken back, where none answers.
    """
    if not is_written(layout):
        raise MissingError(f"expected a job at work on {layout.root}, found none: start it first")
    make_folder(layout.requests)
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    path = layout.requests / f"{name}.json"
    replace_file(path, event.model_dump_json().encode())
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        for row in reversed(read_objects(layout.control)):
            if row.get("request") == name:
                return ControlEvent.model_validate(row)
        time.sleep(_LOOK_EVERY_S)
    path.unlink(missing_ok=True)
    raise DeadlineError(
        f"the job at work on {layout.root} did not answer within {deadline_s:g} s: only training "
        "takes requests, and only once its first workers started"
    )


def take_requests(layout: RunLayout) -> Iterator[tuple[str, ControlEvent | None]]:
    """Take what was asked, oldest first: its id, and None for a file that is no request.

    A request that was taken is gone, whatever becomes of it; one that cannot be removed is left.
    """
    for path in sorted(layout.requests.glob("*.json")):
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST_BYTES)
            path.unlink()
        except OSError:  # taken back, or not ours
            continue
        try:
            yield path.stem, ControlEvent.model_validate_json(content)
        except ValidationError:
            yield path.stem, None
