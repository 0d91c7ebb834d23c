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
    ControlEvent,
    ControlRequest,
    ScaleByRequest,
    ScaleRequest,
    StopRequest,
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
    is_stop = isinstance(request, StopRequest)
    now = None if is_stop else _workers(run, request.group)
    wanted = _wanted(request, now)
    if wanted is not None and not 1 <= wanted <= MAX_WORKERS:
        reason = reason or f"a job has 1 to {MAX_WORKERS} workers, not {wanted}"
    sentence = _sentence(request, now, wanted)
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


def _sentence(request: ControlRequest, now: int | None, wanted: int | None) -> str:
    if isinstance(request, StopRequest):
        return "The job ends in order; finished work is kept, and it can be resumed."
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
