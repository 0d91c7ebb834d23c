"""Requests to a running job: files in its run directory, answered in its control journal.

Every process that may write to the run directory may send a request; no port is opened. A request
is one file, written atomically, which the job removes when it takes the request.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StrictInt,
    ValidationError,
    model_serializer,
    model_validator,
)

from envs.errors import DeadlineError, MissingError, StoreError
from rollout.store.journal import JournalTail, make_folder, read_objects, replace_file
from rollout.store.line_checks import LineChecks, with_checksum
from rollout.store.regular_files import reading
from rollout.store.run_layout import RunLayout
from rollout.store.run_lock import is_written

MAX_WORKERS = 4_096
"""Largest worker count that a job accepts; a larger one is taken for a typing error."""

DEFAULT_GROUP = "default"
"""Group of the workers that `rollouts.workers` counts."""

_POLL_INTERVAL_S = 0.1
_LARGEST_BYTES = 65_536
_LARGEST_COUNT = 10**12
"""Keeps numbers that could only be mistakes out of messages and journals."""


class _Resize(BaseModel):
    """What requests for another number of rollout workers have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str = Field(default=DEFAULT_GROUP, max_length=64)
    """Group of workers, as `rollouts.groups` names it."""
    abort: bool = False
    """Surplus workers end at once; otherwise they finish their episodes first."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Leave out what older versions do not know where it changes nothing."""
        found: dict[str, JsonValue] = write(self)
        usual = {"group": DEFAULT_GROUP, "abort": False}
        return {k: v for k, v in found.items() if k not in usual or v != usual[k]}

    @property
    def _how(self) -> str:
        where = "" if self.group == DEFAULT_GROUP else f" of group {self.group}"
        return where + (", at once" if self.abort else "")


class ScaleRequest(_Resize):
    """Request for another number of rollout workers."""

    kind: Literal["scale"] = "scale"
    workers: StrictInt = Field(ge=0, lt=_LARGEST_COUNT)
    """Target number of rollout workers; a job accepts 1 to `MAX_WORKERS`."""

    def describe(self) -> str:
        """Return the request in a few words, for logs."""
        return f"scale to {self.workers} workers{self._how}"


class ScaleByRequest(_Resize):
    """Request for more or fewer rollout workers than there are to be now."""

    kind: Literal["scale_by"] = "scale_by"
    change: StrictInt = Field(gt=-_LARGEST_COUNT, lt=_LARGEST_COUNT)
    """How many more workers; negative for fewer."""

    def describe(self) -> str:
        """Return the request in a few words, for logs."""
        return f"scale by {self.change:+d} workers{self._how}"


class _Plain(BaseModel):
    """What requests without arguments have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def describe(self) -> str:
        """Return the request in a few words, for logs."""
        return type(self).__name__.removesuffix("Request").lower()


class StopRequest(_Plain):
    """Request to stop the job; what it has finished is kept, and it can be resumed."""

    kind: Literal["stop"] = "stop"


class PauseRequest(_Plain):
    """Request to start no episode and no group until a request to resume; those that run end."""

    kind: Literal["pause"] = "pause"


class ResumeRequest(_Plain):
    """Request to end a pause."""

    kind: Literal["resume"] = "resume"


class CheckpointRequest(_Plain):
    """Request for a checkpoint: at once between two steps, else at the end of the present one."""

    kind: Literal["checkpoint"] = "checkpoint"


ControlRequest = Annotated[
    ScaleRequest | ScaleByRequest | StopRequest | PauseRequest | ResumeRequest | CheckpointRequest,
    Field(discriminator="kind"),
]
"""Every kind of request, distinguished by `kind`."""


class ControlEvent(BaseModel):
    """A request to a running job, and the job's answer once it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: float
    """Unix seconds."""
    actor: str
    """User name of the requester."""
    request: ControlRequest | None = None
    """The request; None in the answer to a file that held no readable request."""
    request_id: str = ""
    """Id of the request that this event answers; empty in the request itself."""
    refused: str = ""
    """Why the job refused the request; empty if it did what was requested."""
    note: str = ""
    """Extra information for the requester."""
    workers: int | None = None
    """Target number of rollout workers after an accepted request for another one."""
    pending: bool = False
    """Whether an accepted request takes effect later; an event with `completed` then says so."""
    completed: bool = False
    """Whether this event says that an accepted request has taken effect, after its answer."""

    @model_validator(mode="before")
    @classmethod
    def _read_untagged(cls, row: JsonValue) -> JsonValue:
        """Read the form with `action` and `detail` as text, in which `request` is the id."""
        if not isinstance(row, dict) or "action" not in row:
            return row
        rest = {key: row[key] for key in row if key not in ("action", "detail", "request")}
        action, detail = row["action"], str(row.get("detail", ""))
        scales = action == "scale" and detail.isascii() and detail.isdigit() and len(detail) <= 12
        request: JsonValue = {"kind": "scale", "workers": int(detail)} if scales else None
        return {**rest, "request": request, "request_id": row.get("request", "")}


def send_request(
    layout: RunLayout,
    event: ControlEvent,
    deadline_s: float,
    *,
    effect_within_s: float | None = None,
) -> ControlEvent:
    """Send `event` to the job that writes to the run, wait, and return the job's answer.

    With `effect_within_s` an accepted request is also waited for until it has taken effect, and
    the event that says so is returned. Raises MissingError if no job is running, StoreError if the
    run directory cannot be written to or the job ends meanwhile, and DeadlineError, after
    withdrawing the request, if no answer comes within `deadline_s`.
    """
    if not is_written(layout):
        raise MissingError(
            f"expected a running job that writes to {layout.root}, found none: start it first"
        )
    make_folder(layout.requests)
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    path = layout.requests / f"{name}.json"
    answers = JournalTail(layout.control)
    answers.skip_to_end()
    replace_file(path, with_checksum(event.model_dump_json()).encode())
    events = _events(answers, name)
    answer = _next_within(events, deadline_s)
    if answer is None:
        path.unlink(missing_ok=True)
        raise DeadlineError(
            f"the job that writes to {layout.root} did not answer within {deadline_s:g} s: only "
            "training takes requests, and only after its first workers have started"
        )
    if effect_within_s is None or answer.refused or not answer.pending:
        return answer
    effect = _next_within(events, effect_within_s, lambda: is_written(layout))
    if effect is None:
        asked = event.request.describe() if event.request else "the request"
        why = f"within {effect_within_s:g} s" if is_written(layout) else "before it ended"
        raise DeadlineError(
            f"the job on {layout.root} accepted: {asked}; it did not take effect {why}"
        )
    return effect


def _events(answers: JournalTail, name: str) -> Iterator[ControlEvent | None]:
    """Yield what the job says about the request `name`, and None as often as there is nothing."""
    while True:
        for row in answers.read():
            if row.get("request_id") == name:
                yield ControlEvent.model_validate(row)
        yield None


def _next_within(
    events: Iterator[ControlEvent | None],
    deadline_s: float,
    goes_on: Callable[[], bool] = lambda: True,
) -> ControlEvent | None:
    """Return the next event; None if none came within `deadline_s` or while `goes_on`."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        went_on = goes_on()  # before the last look
        event = next(events)
        if event is not None or not went_on:
            return event
        time.sleep(_POLL_INTERVAL_S)
    return None


def scaled_to(layout: RunLayout) -> dict[str, int]:
    """Return the number of workers that the last accepted request set for each group; groups
    without one are absent.
    """
    found: dict[str, int] = {}
    for event in _accepted(layout):
        request = event.request
        if not isinstance(request, _Resize):
            continue
        asked = request.workers if isinstance(request, ScaleRequest) else None
        workers = event.workers if event.workers is not None else asked
        if workers is not None:
            found[request.group] = workers
    return found


def is_paused(layout: RunLayout) -> bool:
    """Whether the last accepted request to pause or resume was one to pause.

    It means something only while a job writes to the run: a new process starts without a pause.
    """
    switches = (PauseRequest, ResumeRequest)
    found = [event.request for event in _accepted(layout) if isinstance(event.request, switches)]
    return bool(found) and isinstance(found[-1], PauseRequest)


def _accepted(layout: RunLayout) -> Iterator[ControlEvent]:
    """Yield the answers to requests that were accepted, in order."""
    for row in read_objects(layout.control) if layout.control.exists() else ():
        try:
            event = ControlEvent.model_validate(row)
        except ValidationError:  # of another version
            continue
        if event.request_id and not event.refused and not event.completed:
            yield event


def take_requests(layout: RunLayout) -> Iterator[tuple[str, ControlEvent | None]]:
    """Take the waiting requests, oldest first, as (id, event); the event is None if unreadable.

    A file is removed when it is taken, whatever follows; a file that cannot be removed is skipped.
    """
    for path in sorted(layout.requests.glob("*.json")):
        try:
            with reading(path) as file:
                content = file.read(_LARGEST_BYTES)
            path.unlink()
        except (OSError, StoreError):  # withdrawn, no file, or one that the job may not touch
            continue
        try:
            event = ControlEvent.model_validate_json(LineChecks(path).plain(content))
        except (ValidationError, StoreError):
            event = None
        yield path.stem, event if event is not None and event.request is not None else None
