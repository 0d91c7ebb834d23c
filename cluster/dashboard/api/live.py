"""What changes in runs, as server-sent events: one stream for a tab, whatever it shows.

Events of type `run` say the whole state of a run's figures, so a lost one does no harm. The id of
an event is the state of all runs of the stream; a browser that reconnects sends the last one, and
gets what differs since.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from cluster.dashboard.api.context import LibraryDep
from cluster.dashboard.index.library import KnownRun, Library
from cluster.dashboard.index.tail import size_of
from envs.errors import TrialrunError

router = APIRouter(tags=["live"])
EVENTS = "text/event-stream"
_POLL_S = 0.25
_HEARTBEAT_S = 15.0
_MOST_STEPS = 200
Seen = dict[str, list[int]]
"""By run: episodes, step, bytes of the log, generation of the control journal."""


@router.get(
    "/live",
    response_class=StreamingResponse,
    responses={200: {"content": {EVENTS: {}}, "description": "Events `run`, `problem`, `ready`."}},
)
async def live(
    request: Request,
    library: LibraryDep,
    run: Annotated[list[str], Query(min_length=1, max_length=16, description="Runs to follow.")],
    last_event_id: Annotated[str, Header(max_length=4_000)] = "",
) -> StreamingResponse:
    """Follow runs until the connection closes."""
    runs = [await run_in_threadpool(library.run, name) for name in dict.fromkeys(run)]
    seen = read_id(last_event_id)
    return StreamingResponse(
        _events(request, library, runs, seen),
        media_type=EVENTS,
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _events(
    request: Request, library: Library, runs: list[KnownRun], seen: Seen
) -> AsyncIterator[str]:
    yield "retry: 2000\nevent: ready\ndata: {}\n\n"
    spoke = time.monotonic()
    failed: set[str] = set()
    while not await request.is_disconnected():
        for run in runs:
            try:
                found = await run_in_threadpool(_state, library, run, seen.get(run.id))
            except (TrialrunError, OSError) as error:
                if run.id not in failed:
                    failed.add(run.id)
                    yield _event("problem", {"run": run.id, "detail": str(error)[:500]}, seen)
                continue
            if found is None:
                continue
            state, payload = found
            seen[run.id] = state
            spoke = time.monotonic()
            yield _event("run", payload, seen)
        if time.monotonic() - spoke > _HEARTBEAT_S:
            spoke = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_POLL_S)


def _state(
    library: Library, run: KnownRun, before: list[int] | None
) -> tuple[list[int], dict[str, Any]] | None:
    """Return what a run's state is now; None where it is as `before`."""
    index = library.open(run)
    steps = run.facts.steps()
    step = steps[-1].step if steps else 0
    written = run.facts.is_written()
    state = [
        index.episodes,
        step,
        size_of(run.layout.log),
        size_of(run.layout.control),
        index.coverage.details,
        int(written),
        size_of(run.layout.ledger),
    ]
    if state == before:
        return None
    since = before[1] if before else -1
    fresh = [row for row in steps if row.step > since][-_MOST_STEPS:] if before else []
    payload = {
        "run": run.id,
        "episodes": index.episodes,
        "new_episodes": index.episodes - before[0] if before else 0,
        "step": step,
        "running": written,
        "metrics": [{"step": row.step, **row.values} for row in fresh],
        "log_changed": bool(before) and state[2] != before[2],
        "control_changed": bool(before) and state[3] != before[3],
        "coverage": index.coverage.model_dump(),
    }
    return state, payload


def _event(kind: str, payload: dict[str, Any], seen: Seen) -> str:
    data = json.dumps(payload, allow_nan=False)
    return f"id: {write_id(seen)}\nevent: {kind}\ndata: {data}\n\n"


def write_id(seen: Seen) -> str:
    """Return the id of an event."""
    return base64.urlsafe_b64encode(json.dumps(seen).encode()).decode()


def read_id(text: str) -> Seen:
    """Return what an id stands for; nothing for one that is not ours."""
    try:
        found = json.loads(base64.urlsafe_b64decode(text)) if text else {}
        return {
            str(run): [int(number) for number in state]
            for run, state in found.items()
            if len(state) == 7
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
