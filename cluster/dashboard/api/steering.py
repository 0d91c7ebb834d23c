"""Steering a running job: requests in its run directory, its answers, and the audit."""

import time
from typing import Annotated

from fastapi import APIRouter, Body, Query
from pydantic import ValidationError

from cluster.dashboard.api.context import LimitQuery, RunDep, SettingsDep
from cluster.dashboard.index.library import KnownRun
from cluster.dashboard.models.runs import Audit, AuditEntry, SteerPreview, SteerResult
from cluster.dashboard.problems import ApiError
from cluster.dashboard.settings import Settings
from rollout.store.control import (
    DEFAULT_GROUP,
    MAX_WORKERS,
    CheckpointRequest,
    ControlEvent,
    ControlRequest,
    PauseRequest,
    ResumeRequest,
    ScaleByRequest,
    ScaleRequest,
    scaled_to,
    send_request,
)
from rollout.store.journal import JournalTail

router = APIRouter(tags=["steering"])
_Steer = Annotated[ControlRequest, Body(description="A request, told apart by `kind`.")]


@router.post("/runs/{run}/steer", response_model=SteerResult)
def steer(
    run: RunDep,
    settings: SettingsDep,
    request: _Steer,
    wait_s: Annotated[float, Query(ge=0.5, le=60, allow_inf_nan=False)] = 15.0,
) -> SteerResult:
    """Send a request to the job and wait for its answer; both stay in the run's audit."""
    check_writes(settings)
    actor = f"{settings.user} (dashboard)"
    event = ControlEvent(at=time.time(), actor=actor, request=request)
    answer = send_request(run.layout, event, wait_s)
    return SteerResult(
        accepted=not answer.refused,
        refused=answer.refused,
        note=answer.note,
        workers=answer.workers,
    )


@router.post("/runs/{run}/steer/preview", response_model=SteerPreview)
def preview(run: RunDep, settings: SettingsDep, request: _Steer) -> SteerPreview:
    """Say what a request would do; nothing is sent."""
    reason = ""
    if settings.read_only or settings.demo:
        reason = "this dashboard was started without the right to write"
    elif not run.facts.is_written():
        reason = "no job writes to the run now"
    resizes = isinstance(request, ScaleRequest | ScaleByRequest)
    now = _workers(run, request.group) if resizes else None
    wanted = _wanted(request, now)
    if wanted is not None and not 1 <= wanted <= MAX_WORKERS:
        reason = reason or f"a job has 1 to {MAX_WORKERS} workers, not {wanted}"
    sentence = _sentence(request, now, wanted) if resizes else _plain_sentence(request, run)
    return SteerPreview(allowed=not reason, sentence=sentence, reason=reason)


@router.get("/runs/{run}/audit", response_model=Audit)
def audit(run: RunDep, limit: LimitQuery = 100) -> Audit:
    """Return the requests to the run's jobs and their answers, the newest first."""
    entries: list[AuditEntry] = []
    for row in JournalTail(run.layout.control).read():
        try:
            event = ControlEvent.model_validate(row)
        except ValidationError:  # of another version
            continue
        entries.append(
            AuditEntry(
                at=event.at,
                actor=event.actor,
                request=event.request.describe() if event.request else "an unreadable request",
                refused=event.refused,
                note=event.note,
                workers=event.workers,
                completed=event.completed,
            )
        )
    waiting = sum(1 for _ in run.layout.requests.glob("*.json"))
    return Audit(entries=entries[::-1][:limit], waiting=waiting)


def check_writes(settings: Settings) -> None:
    """Raise ApiError unless this dashboard may write."""
    if settings.demo:
        fix = "start the dashboard with the directory of a real run"
        raise ApiError(403, "demo", "the recording of the demo cannot be steered", fix)
    if settings.read_only:
        fix = "start the dashboard without --read-only"
        raise ApiError(403, "read-only", "this dashboard may not write", fix)


def _workers(run: KnownRun, group: str) -> int | None:
    """Return how many workers a group is to have, as far as the run's directory says."""
    asked = scaled_to(run.layout).get(group)
    if asked is not None or group != DEFAULT_GROUP:
        return asked
    steps = run.facts.steps()
    grouped = run.facts.setting("rollouts", "groups")
    if steps and "workers" in steps[-1].values and not grouped:
        return int(steps[-1].values["workers"])
    planned = run.facts.setting("rollouts", "workers")
    return planned if isinstance(planned, int) else None


def _wanted(request: ControlRequest, now: int | None) -> int | None:
    if isinstance(request, ScaleRequest):
        return request.workers
    if isinstance(request, ScaleByRequest):
        return None if now is None else now + request.change
    return None


def _plain_sentence(request: ControlRequest, run: KnownRun) -> str:
    """Say what a request does that names no number."""
    paused = run.facts.is_paused()
    match request:
        case PauseRequest():
            if paused:
                return "Nothing changes: the job is paused."
            return (
                "No episode and no group starts until the job is resumed; episodes that run are "
                "finished. Workers and learner stay."
            )
        case ResumeRequest():
            return "Episodes start again." if paused else "Nothing changes: there is no pause."
        case CheckpointRequest():
            return (
                "The job takes a checkpoint: at once between two steps, else when the step has "
                "ended. Older ones go as run.keep_checkpoints says."
            )
        case _:
            return "The job ends in order; finished work is kept, and it can be resumed."


def _sentence(request: ScaleRequest | ScaleByRequest, now: int | None, wanted: int | None) -> str:
    if wanted is None or now is None:
        return f"The job is asked to {request.describe()}."
    if wanted == now:
        return f"Nothing changes: there are {now} workers."
    if wanted > now:
        return (
            f"{wanted - now} workers start, which takes room in the cluster; now there are {now}."
        )
    how = "stop at once" if request.abort else "end their episodes and then stop"
    return f"{now - wanted} of {now} workers {how}."
