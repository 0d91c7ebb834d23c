"""What a snapshot holds: the answers of the API about a run and its chosen episodes."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from cluster.dashboard.app import create_open_app
from cluster.dashboard.bundle.page import key_of
from cluster.dashboard.settings import Settings
from envs.errors import ConfigError, DeadlineError

_BASE = "http://snapshot/api/v1"
_READ_S = 3600.0
_POLL_S = 0.2
_PAGE = 500
_ROWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which episodes of which run a snapshot has."""

    run: str
    """Id of the run."""
    filter_text: str
    limit: int


@dataclass(slots=True)
class _Collector:
    client: httpx.AsyncClient
    run: str
    answers: dict[str, Any] = field(default_factory=dict)

    async def get(self, path: str, **parameters: Any) -> Any:
        """Return an answer. Raises ConfigError for what was asked wrongly."""
        response = await self.client.get(f"{_BASE}{path}", params=parameters)
        body = response.json()
        if response.is_error:
            raise ConfigError(f"{body['detail']}: {body['fix']}")
        return body

    async def keep(self, route: str, choosing: dict[str, Any] | None = None, **others: Any) -> Any:
        """Get an answer about the run and keep it under what chooses it."""
        path = f"/runs/{self.run}{route and f'/{route}'}"
        answer = await self.get(path, **(choosing or {}), **others)
        self.answers[key_of(path, **(choosing or {}))] = answer
        return answer


async def snapshot_of(settings: Settings, chosen: Chosen) -> dict[str, Any]:
    """Return the content of a snapshot (`Kept` of core/snapshot.js).

    Raises ConfigError for a filter that cannot be read or matches nothing.
    """
    async with _api(settings) as client:
        collector = _Collector(client, chosen.run)
        await _all_read(collector)
        rows, total = await _rows(collector, chosen)
        if not rows:
            raise ConfigError(
                f"expected a filter that episodes match, found none for {chosen.filter_text!r}"
                if chosen.filter_text
                else "expected a run with episodes, found none"
            )
        await _about_the_run(collector)
        for row in rows:
            await _about_an_episode(collector, row)
        for group in dict.fromkeys(row["group"] for row in rows):
            await _about_a_group(collector, group)
        return {
            "answers": collector.answers,
            "rows": rows,
            "run": chosen.run,
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "of": total,
        }


@asynccontextmanager
async def _api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_open_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        headers = {"accept": "application/json"}
        async with httpx.AsyncClient(transport=transport, headers=headers) as client:
            yield client


async def _all_read(collector: _Collector) -> None:
    until = time.monotonic() + _READ_S
    while not (await collector.keep("health"))["coverage"]["complete"]:
        if time.monotonic() > until:
            raise DeadlineError(f"the episodes were not read within {_READ_S:g} s")
        await asyncio.sleep(_POLL_S)


async def _rows(collector: _Collector, chosen: Chosen) -> tuple[list[dict[str, Any]], int]:
    """Return the newest matching episodes, and the number of all."""
    path, rows, cursor = f"/runs/{collector.run}/episodes", [], ""
    while len(rows) < chosen.limit:
        limit = min(_PAGE, chosen.limit - len(rows))
        page = await collector.get(path, filter=chosen.filter_text, limit=limit, cursor=cursor)
        rows += page["rows"]
        cursor = page["next"]
        if not cursor:
            break
    everything = await collector.get(path, limit=1)
    return rows, everything["total"]


async def _about_the_run(collector: _Collector) -> None:
    summary = await collector.keep("")
    collector.answers["/runs"] = {"runs": [summary], "roots": [], "studies": []}
    version = {"version": "", "demo": False, "can_write": False}
    collector.answers["/session"] = {"role": "viewer", **version}
    for route in ("overview", "metrics", "config", "ledger/summary", "audit", "open"):
        await collector.keep(route)
    await collector.keep("fleet", buckets=120)
    for by in ("tool", "environment"):
        await collector.keep("tools", {"by": by})
    for event in ("", "dropped", "re_leased", "rolled_back"):
        await _without_more(collector, "ledger", {"event": event} if event else {})
    for equal in ("", "true", "false"):
        await _without_more(collector, "groups", {"zero_variance": equal} if equal else {})
    if summary["kind"] == "eval":
        await collector.keep("evaluation")


async def _without_more(collector: _Collector, route: str, choosing: dict[str, Any]) -> None:
    """Keep the first page of a table; a snapshot has no further ones."""
    page = await collector.keep(route, choosing, limit=_ROWS)
    page["next"] = None


async def _about_an_episode(collector: _Collector, row: dict[str, Any]) -> None:
    one = {"attempt": row["attempt"], "id": row["episode"]}
    detail = await collector.keep("episode", one)
    collector.answers.setdefault(
        key_of(f"/runs/{collector.run}/episode", id=row["episode"]), detail
    )
    await collector.keep("episode/tokens", one, texts=True)
    others = [s for s in detail["siblings"] if s["episode"] != row["episode"]]
    own = row["reward"] or 0.0
    others.sort(key=lambda other: -abs((other["reward"] or 0.0) - own))
    if others:
        await _diff(collector, [row["episode"], others[0]["episode"]])


async def _about_a_group(collector: _Collector, group: str) -> None:
    found = await collector.keep("group", {"id": group})
    rows = [lane["row"] for lane in found["lanes"]]
    ordered = sorted(rows, key=lambda row: row["reward"] or 0.0)
    if len(ordered) > 1:
        await _diff(collector, [ordered[0]["episode"], ordered[-1]["episode"]])


async def _diff(collector: _Collector, episodes: Sequence[str]) -> None:
    if len(set(episodes)) > 1:
        await collector.keep("diff", {"id": list(episodes)})
