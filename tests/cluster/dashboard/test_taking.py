"""Search, export and SFT sets: what is found and taken along."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.dashboard.episodes import searching
from cluster.dashboard.index.library import Library
from cluster.training.sft_data import selected_of
from rollout.episode_schema import EPISODE_SCHEMA, from_batch
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader
from tests.cluster.dashboard.conftest import Dashboard, Open
from tests.cluster.dashboard.sample_run import GROUP, STORED, write_sample_run


def search(dashboard: Dashboard, **parameters: Any) -> list[dict[str, Any]]:
    found = dashboard.client.get(f"/api/v1{dashboard.run}/search", params=parameters)
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in found.text.splitlines()]


def hits(dashboard: Dashboard, **parameters: Any) -> list[tuple[str, int, str]]:
    lines = search(dashboard, **parameters)
    found = [line for line in lines if line["type"] == "hit"]
    assert lines[-1]["type"] == "end"
    assert lines[-1]["hits"] == len(found)
    return [(line["episode"], line["attempt"], line["part"]) for line in found]


def test_every_kind_of_text_is_searched(dashboard: Dashboard) -> None:
    assert {part for _, _, part in hits(dashboard, q="found 2")} == {"turns/0/calls/0/result"}
    assert {part for _, _, part in hits(dashboard, q="<answer>value 3")} == {"turns/2/text"}
    assert {part for _, _, part in hits(dashboard, q="connection refused")} == {"error"}
    assert {part for _, _, part in hits(dashboard, q='{"q": "convert"}')} == {
        "turns/2/calls/0/arguments"
    }
    assert {part for _, _, part in hits(dashboard, q="You have tools")} == {"messages/0"}
    assert len(hits(dashboard, q="What is task-1")) == 2 * GROUP + 1
    assert hits(dashboard, q="not there at all") == []


def test_a_search_stays_within_the_filter_and_the_newest_come_first(dashboard: Dashboard) -> None:
    found = hits(dashboard, q="try", filter="reward=0.5")
    assert [episode for episode, _, _ in found] == [f"g00000{group}-02" for group in (4, 3, 1, 0)]
    (hit,) = [line for line in search(dashboard, q="ry 2", filter="reward=0.5 and step=2")
              if line["type"] == "hit"]  # fmt: skip
    assert (hit["before"], hit["match"], hit["after"]) == ("t", "ry 2", "")


def test_capitals_and_patterns(dashboard: Dashboard) -> None:
    assert len(hits(dashboard, q="FOUND 1")) == 5
    assert hits(dashboard, q="FOUND 1", case=True) == []
    assert len(hits(dashboard, q=r"value [12]<", pattern=True)) == 10
    wrong = dashboard.get(f"{dashboard.run}/search", 400, q="(a", pattern=True)
    assert wrong["code"] == "bad-pattern"
    assert dashboard.get(f"{dashboard.run}/search", 400, q="(?P<hit>a)", pattern=True)["fix"]


def test_a_search_ends_at_its_limit_and_says_so(dashboard: Dashboard) -> None:
    lines = search(dashboard, q="try", limit=2)
    assert lines[-1]["stopped"] == "the first 2 hits"
    assert sum(line["type"] == "hit" for line in lines) == 2


def test_a_search_goes_on_in_steps_so_that_it_can_be_cancelled(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_BLOCK_BYTES", 20_000)
    lines = search(dashboard, q="try")
    progress = [line["episodes"] for line in lines if line["type"] == "progress"]
    assert progress == sorted(progress)
    assert len(progress) > 3
    assert lines[-1]["episodes"] == STORED


def test_whole_episodes_as_parquet_are_the_stored_ones(dashboard: Dashboard) -> None:
    found = dashboard.client.get(
        f"/api/v1{dashboard.run}/export", params={"format": "parquet", "filter": "reward=0.5"}
    )
    assert "attachment" in found.headers["content-disposition"]
    table = pq.read_table(io.BytesIO(found.content))
    assert table.schema.equals(EPISODE_SCHEMA)
    episodes = from_batch(table.cast(EPISODE_SCHEMA).combine_chunks().to_batches()[0])
    stored = RunReader(dashboard.root / "sample")
    # NaN logprobs are unequal to themselves, so texts are compared.
    assert [repr(episode) for episode in episodes] == [
        repr(stored.episode(episode.lease.episode)) for episode in episodes
    ]
    assert len(episodes) == 4


def test_lines_and_rows_are_exported(dashboard: Dashboard) -> None:
    address = f"/api/v1{dashboard.run}/export"
    lines = dashboard.client.get(address, params={"filter": "outcome=infra_failed"}).text
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["episode"] for row in rows] == ["g000001-03", "g000005-00"]
    assert "token_ids" not in rows[0]
    assert rows[0]["turns"][0]["phase"] == "trial"
    assert rows[0]["tags"] == {"depth": "2"}
    tokens = dashboard.client.get(address, params={"filter": "uid=0", "tokens": True}).json()
    assert tokens["logprobs"][0] is None
    narrow = dashboard.client.get(address, params={"what": "rows"}).text.splitlines()
    assert len(narrow) == STORED
    parquet = dashboard.client.get(address, params={"what": "rows", "format": "parquet"})
    assert pq.read_table(io.BytesIO(parquet.content)).num_rows == STORED
    empty = dashboard.client.get(address, params={"filter": "uid<0", "format": "parquet"})
    assert pq.read_table(io.BytesIO(empty.content)).num_rows == 0


def test_no_exported_file_stays_in_the_cache(dashboard: Dashboard) -> None:
    library: Library = dashboard.client.app.app.state.library  # type: ignore[attr-defined]
    assert list(library.settings.cache.glob("*.parquet")) == []


def test_an_sft_set_is_what_sft_trains_on(tmp_path: Path, open_dashboard: Open) -> None:
    write_sample_run(tmp_path / "runs" / "sample")
    dashboard = open_dashboard(tmp_path / "runs")
    dashboard.read()
    address = f"/api/v1{dashboard.run}/sft-set"
    made = dashboard.client.post(address, json={"filter": "mode=trial", "name": "best"}).json()
    assert made["episodes"] == 10
    assert made["left_out"] == {"wrong answers": 10, "without a reward": 2}
    assert made["path"] == str(tmp_path / "runs" / "best")
    assert "trialrun sft" in made["command"]
    table = selected_of(tmp_path / "runs" / "best")
    assert sorted(table["episode"].to_pylist()) == [
        f"g00000{group}-0{sample}" for group in range(5) for sample in (2, 3)
    ]
    reader = RunReader(tmp_path / "runs" / "best")
    assert reader.kind is RunKind.COLLECT
    assert reader.ledger().audit().violations == ()
    again = dashboard.client.post(address, json={"name": "best"})
    assert (again.status_code, again.json()["code"]) == (409, "exists")
    none = dashboard.client.post(address, json={"name": "none", "filter": "reward<0.1"})
    assert (none.status_code, none.json()["code"]) == (409, "empty")
    assert not (tmp_path / "runs" / "none").exists()
    for name in ("../up", "a/b", ".hidden", ""):
        assert dashboard.client.post(address, json={"name": name}).status_code == 422
    names = {run["name"]: run for run in dashboard.get("/runs")["runs"]}
    assert names["best"]["kind"] == "collect"
    assert names["best"]["state"] == "finished"
