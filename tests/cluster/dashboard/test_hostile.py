"""Texts that attack whoever shows them pass through the API as texts, and break nothing."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from cluster.dashboard.app import create_app
from rollout.episode import Episode
from rollout.episode_schema import to_batch
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind
from tests.cluster.dashboard.conftest import HOST, OPERATOR, Dashboard, settings_for
from tests.cluster.dashboard.sample_run import (
    CONFIG,
    call_of,
    episode_of,
    lease_of,
)

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "svg": "<svg onload=alert(1)><animate onbegin=alert(1)>",
    "link": "[x](javascript:alert(1)) <a href='javascript:alert(1)'>",
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "bidi": "user\u202e\u2066 txt.exe\u2069",
    "nul": "a\x00b",
    "zero width": "pass\u200bword\u200d\ufeff",
    "separators": "a\u2028b\u2029c",
    "data url": "data:image/svg+xml;base64," + "A" * 100_000,
    "deep json": "[" * 5_000 + "]" * 5_000,
    "markup": "</textarea></title>--><!--{{constructor.constructor('x')()}}",
    "big": "x" * 10_000_000,
    "astral": "\U0001f468\u200d\U0001f469" * 50,
    "percent": "%00%2e%2e/..\\..//\r\nSet-Cookie: a=b",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A run whose every text is hostile, its names included."""
    root = tmp_path_factory.mktemp("hostile")
    info = RunInfo(run="sample", kind=RunKind.TRAIN, seed=1, created_at=1.7e9, command="<b>")
    with RunDirectory.create(root / "sample", CONFIG, info) as run:
        for number, (name, text) in enumerate(HOSTILE.items()):
            run.ledger.lease([lease_of(number, 0)])
            append_hostile(run, hostile_episode(number, name, text))
            run.ledger.finish(lease_of(number, 0))
        run.layout.log.write_bytes(b"\xff\xfe\x00<script>\x1b[31m error\n" * 3)
    settings = settings_for(root, tmp_path_factory.mktemp("cache"))
    with TestClient(create_app(settings), base_url=f"http://{HOST}") as client:
        client.headers["authorization"] = f"Bearer {OPERATOR}"
        found = Dashboard(client, root)
        found.read()
        yield found


def hostile_episode(number: int, name: str, text: str) -> Episode:
    """Return an episode of one turn and one call, all of whose texts are `text`."""
    base = episode_of(lease_of(number, 0))
    call = call_of(text[:200], text, "trial", base.turns[0].calls[0].status)
    return replace(
        base,
        question=text,
        answer=text,
        tags={text[:100]: text[:100]},
        reward=float("inf") if name == "nul" else float("nan"),
        reward_parts={text[:50]: float("-inf"), "answer": float("nan")},
        worker=text[:100],
        turns=(replace(base.turns[0], text=text, calls=(call,)),),
    )


def append_hostile(run: RunDirectory, episode: Episode) -> None:
    """Store an episode whose reward no index line can hold: the segment alone has it."""
    with suppress(ValueError):
        run.append(to_batch([episode]))


def test_every_text_comes_back_as_it_was_stored_and_only_as_json(hostile: Dashboard) -> None:
    rows = hostile.rows()
    assert len(rows) == len(HOSTILE)
    for row in rows:
        text = list(HOSTILE.values())[int(row["group"][1:])]
        address = f"/api/v1{hostile.run}/episode"
        answer = hostile.client.get(address, params={"id": row["episode"]})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert b"\x00" not in answer.content
        detail = answer.json()
        turn = detail["turns"][0]["text"]
        assert turn["length"] == len(text)
        assert turn["text"] == text[:20_000]
        assert len(answer.content) < 400_000
        whole = hostile.get(
            f"{hostile.run}/episode/text",
            id=row["episode"],
            part="turns/0/calls/0/result",
            limit=1_000_000,
        )
        assert whole["text"] == text[:1_000_000]
        assert row["reward"] is None
        assert row["question"] == text[:200]


def test_every_other_route_answers(hostile: Dashboard) -> None:
    routes = ("overview", "facets", "groups", "tools", "calls", "fleet", "evaluation", "logs",
              "ledger", "config", "histogram", "health")  # fmt: skip
    for route in routes:
        answer = hostile.client.get(f"/api/v1{hostile.run}/{route}")
        assert answer.status_code == 200, (route, answer.text[:500])
        json.loads(answer.content)
    assert hostile.client.get("/metrics").status_code == 200
    lines = hostile.client.get(f"/api/v1{hostile.run}/export").text.splitlines()
    assert len([json.loads(line) for line in lines]) == len(HOSTILE)


def test_the_filter_of_a_hostile_tool_lists_its_episode(hostile: Dashboard) -> None:
    tools = hostile.get(f"{hostile.run}/tools")["rows"]
    for row in [row for row in tools if row["phase"] == "all"]:
        found = hostile.client.get(f"/api/v1{hostile.run}/filter", params={"filter": row["filter"]})
        assert found.status_code == 200, found.text
        assert found.json()["total"] == 1, row["tool"]


def test_a_search_finds_hostile_texts(hostile: Dashboard) -> None:
    for text in ("<script>alert", "\u202e", "a\u2028b", "onbegin=ALERT"):
        lines = hostile.client.get(f"/api/v1{hostile.run}/search", params={"q": text}).text
        assert '"type":"hit"' in lines


def test_flags_name_garbled_text(hostile: Dashboard) -> None:
    garbled = {list(HOSTILE)[int(row["group"][1:])] for row in hostile.rows("garbled")}
    assert garbled >= {"ansi", "nul"}
    assert "script" not in garbled


@pytest.mark.parametrize("value", list(HOSTILE.values())[:10], ids=list(HOSTILE)[:10])
def test_hostile_parameters_are_refused_or_find_nothing(dashboard: Dashboard, value: str) -> None:
    shown = value[:3_000]
    for route, name in (
        ("episodes", "filter"), ("episodes", "sort"), ("episodes", "cursor"), ("episode", "id"),
        ("group", "id"), ("logs", "pattern"), ("search", "q"), ("ledger", "reason"),
        ("calls", "tool"), ("evaluation", "by"), ("facets", "field"), ("diff", "id"),
    ):  # fmt: skip
        answer = dashboard.client.get(f"/api/v1{dashboard.run}/{route}", params={name: shown})
        assert answer.status_code < 500, (route, name, answer.text[:300])
    answer = dashboard.client.get(f"/api/v1/runs/{quote(value[:50])}")
    assert answer.status_code in (404, 422)
