"""Every route over a small real run, against what was written into it."""

from typing import Any

import pyarrow as pa
import pytest

from tests.cluster.dashboard.conftest import Dashboard
from tests.cluster.dashboard.sample_run import GROUP, STORED


def test_the_list_of_runs(dashboard: Dashboard) -> None:
    found = dashboard.get("/runs")
    (run,) = found["runs"]
    assert (run["name"], run["kind"], run["state"], run["step"]) == (
        "sample",
        "train",
        "stopped",
        2,
    )
    assert run["reward_spark"] == [0.25, 0.5]
    assert (run["workers"], run["episodes"]) == (2, STORED)
    assert run["last_error"] == "error: a worker failed"


def test_the_overview_names_the_bottleneck_with_its_denominator(dashboard: Dashboard) -> None:
    found = dashboard.get(f"{dashboard.run}/overview")
    assert found["bottleneck"]["part"] == "rollouts"
    assert found["bottleneck"]["share"] == pytest.approx(0.8)
    assert "80% of the 20 s of the last 2 steps" in found["bottleneck"]["sentence"]
    assert found["bottleneck"]["fix"]
    charts = {chart["id"]: chart for chart in found["charts"]}
    assert len(charts) <= 12
    assert charts["reward"]["lines"][0]["values"] == [0.25, 0.5]
    assert charts["yield"]["lines"] == []
    assert "not recorded" in charts["yield"]["note"]
    assert {row["outcome"]: row["count"] for row in found["outcomes"]} == {
        "answered": GROUP * 5,
        "infra_failed": 2,
    }


def test_metrics_carry_unit_and_meaning_and_null_where_nothing_was_measured(
    dashboard: Dashboard,
) -> None:
    series = {row["name"]: row for row in dashboard.get(f"{dashboard.run}/metrics")["series"]}
    assert series["reward"]["values"] == [0.25, 0.5]
    assert series["reward"]["unit"] == "reward"
    assert series["reward"]["meaning"]
    assert "loss" not in series
    only = dashboard.get(f"{dashboard.run}/metrics", name="success")["series"]
    assert [row["name"] for row in only] == ["success"]


def test_logs_are_searched_and_paged(dashboard: Dashboard) -> None:
    whole = dashboard.get(f"{dashboard.run}/logs")
    assert [line["level"] for line in whole["lines"]] == ["info", "info", "error"]
    assert whole["lines"][0]["at"] == whole["lines"][1]["at"] == 1767323045.0
    newest = dashboard.get(f"{dashboard.run}/logs", limit=1)
    assert newest["more"]
    older = dashboard.get(f"{dashboard.run}/logs", limit=5, before=newest["before"])
    assert [line["number"] for line in older["lines"]] == [1, 2]
    hit = dashboard.get(f"{dashboard.run}/logs", pattern="WORKER")
    assert [line["text"] for line in hit["lines"]] == ["error: a worker failed"]
    wrong = dashboard.get(f"{dashboard.run}/logs", 400, pattern="((")
    assert wrong["code"] == "bad-pattern"


def test_pages_of_episodes_are_pinned_and_complete(dashboard: Dashboard) -> None:
    seen: list[str] = []
    cursor = ""
    while True:
        page = dashboard.get(f"{dashboard.run}/episodes", limit=4, sort="-reward", cursor=cursor)
        seen += [f"{row['episode']}/{row['attempt']}" for row in page["rows"]]
        assert page["total"] == STORED
        if page["next"] is None:
            break
        cursor = page["next"]
    assert len(seen) == len(set(seen)) == STORED
    rewards = [row["reward"] for row in dashboard.rows(sort="-reward")]
    present = [reward for reward in rewards if reward is not None]
    assert present == sorted(present, reverse=True)
    assert rewards[-2:] == [None, None]


def test_a_cursor_of_another_question_is_refused(dashboard: Dashboard) -> None:
    page = dashboard.get(f"{dashboard.run}/episodes", limit=2)
    for cursor in (page["next"], "xyz", "e30", "W10"):
        found = dashboard.get(f"{dashboard.run}/episodes", 400, sort="reward", cursor=cursor)
        assert found["code"] == "bad-cursor"


def test_a_row_says_what_became_of_the_episode(dashboard: Dashboard) -> None:
    rows = {(row["episode"], row["attempt"]): row for row in dashboard.rows()}
    trained = rows["g000000-02", 0]
    assert (trained["state"], trained["step"], trained["advantage"]) == ("trained", 1, 1.0)
    assert trained["staleness"] == 0
    retried = rows["g000001-03", 0]
    assert (retried["state"], retried["reason"]) == ("retried", "the tool server was lost")
    assert retried["advantage"] is None
    assert rows["g000001-03", 1]["state"] == "trained"
    assert (rows["g000002-00", 0]["state"], rows["g000002-00", 0]["reason"]) == (
        "dropped",
        "zero_variance",
    )
    assert rows["g000004-00", 0]["state"] == "finished"
    lost = rows["g000005-00", 0]
    assert (lost["state"], lost["reason"], lost["reward"]) == ("dropped", "infra_failed", None)
    assert (trained["trial_calls"], trained["execution_calls"]) == (1, 1)
    assert rows["g000000-01", 0]["tool_errors"] == 1
    assert trained["flags"] == ["answer_in_tool"]
    assert trained["sampled_tokens"] == 8


def test_what_is_in_progress(dashboard: Dashboard) -> None:
    found = dashboard.get(f"{dashboard.run}/open")
    assert found["total"] == GROUP - 1
    assert {row["episode"] for row in found["episodes"]} == {f"g000005-0{i}" for i in (1, 2, 3)}


def test_facets_count_what_matches(dashboard: Dashboard) -> None:
    found = dashboard.get(f"{dashboard.run}/facets", filter="reward>=0.5")
    facets = {facet["field"]: facet for facet in found["facets"]}
    values = {value["value"]: value["count"] for value in facets["state"]["values"]}
    assert sum(values.values()) == found["total"] == 2 * 4 + GROUP
    tools = {value["value"]: value["count"] for value in facets["tool"]["values"]}
    assert tools == {"search": found["total"], "convert": found["total"]}
    flags = {value["value"]: value["count"] for value in facets["flag"]["values"]}
    assert flags == {"answer_in_tool": found["total"]}


def test_a_histogram_adds_up(dashboard: Dashboard) -> None:
    found = dashboard.get(f"{dashboard.run}/histogram", field="reward", bins=4)
    assert sum(found["counts"]) + found["missing"] == STORED
    assert found["missing"] == 2
    assert (found["edges"][0], found["edges"][-1]) == (0.0, 1.0)
    assert found["counts"][0] == 4
    assert dashboard.get(f"{dashboard.run}/histogram", 422, field="mode")["code"] == "wrong-value"


def test_groups_and_their_lanes(dashboard: Dashboard) -> None:
    page = dashboard.get(f"{dashboard.run}/groups", zero_variance=True)
    assert [row["group"] for row in page["rows"]] == ["g000002"]
    first = dashboard.get(f"{dashboard.run}/groups", limit=2)
    rest = dashboard.get(f"{dashboard.run}/groups", limit=10, cursor=first["next"])
    names = [row["group"] for row in first["rows"] + rest["rows"]]
    assert names == [f"g{number:06d}" for number in range(5, -1, -1)]
    group = dashboard.get(f"{dashboard.run}/group", id="g000002")
    assert group["zero_variance"]
    assert "equal" in group["baseline_note"]
    lanes = dashboard.get(f"{dashboard.run}/group", id="g000001")["lanes"]
    assert [lane["row"]["attempt"] for lane in lanes] == [0, 0, 0, 1]
    assert [piece["phase"] for piece in lanes[0]["pieces"]] == ["trial", "experience", "execution"]
    assert [piece["tokens"] for piece in lanes[0]["pieces"]] == [3, 2, 3]
    opened = dashboard.get(f"{dashboard.run}/group", id="g000005")["open"]
    assert len(opened) == GROUP - 1
    assert dashboard.get(f"{dashboard.run}/group", 404, id="<b>")["code"] == "not-found"


def test_an_episode_is_read_in_full(dashboard: Dashboard) -> None:
    found = dashboard.get(f"{dashboard.run}/episode", id="g000000-01")
    turns = found["turns"]
    assert [turn["phase"] for turn in turns] == ["trial", "experience", "execution"]
    assert [turn["versions"] for turn in turns] == [[0], [0], [1]]
    call = turns[0]["calls"][0]
    assert (call["name"], call["status"], call["purpose"]) == ("search", "tool_error", "trial")
    assert call["result"]["text"] == "found 1"
    assert turns[0]["observations"] == []
    assert [message["role"] for message in found["messages_before"]] == ["system", "user"]
    assert found["scorer"]["correct"] is False
    assert {part["name"]: part["value"] for part in found["scorer"]["parts"]} == {
        "answer": 0.0,
        "length": -0.125,
    }
    assert found["consumed_at"] == "step 1, with the weights that it was sampled with"
    assert [row["episode"] for row in found["siblings"]] == [f"g000000-0{i}" for i in (0, 2, 3)]
    assert found["tags"] == {"depth": "1"}
    assert found["isolation"] == "namespaces"
    overlays = {overlay["name"]: overlay for overlay in found["overlays"]}
    assert overlays["advantage"]["available"]
    assert overlays["logprob"]["tokens"] == 8
    retried = dashboard.get(f"{dashboard.run}/episode", id="g000001-03", attempt=0)
    assert retried["attempts"] == [0, 1]
    reasons = {overlay["name"]: overlay["reason"] for overlay in retried["overlays"]}
    assert "retried" in reasons["advantage"]
    assert "404" in str(dashboard.get(f"{dashboard.run}/episode", 404, id="nobody")["status"])


def test_an_empty_overlay_says_why(dashboard: Dashboard) -> None:
    def reason(episode: str) -> str:
        found = dashboard.get(f"{dashboard.run}/episode", id=episode)
        return next(o["reason"] for o in found["overlays"] if o["name"] == "advantage")

    assert reason("g000002-00") == "dropped before a learner: zero_variance"
    assert reason("g000004-00") == "no step has taken the episode yet"
    assert reason("g000000-00") == ""


def test_a_text_is_read_in_pieces(dashboard: Dashboard) -> None:
    address = f"{dashboard.run}/episode/text"
    part = "turns/0/calls/0/result"
    first = dashboard.get(address, id="g000000-01", part=part, limit=4)
    assert (first["text"], first["length"], first["next"]) == ("foun", 7, 4)
    rest = dashboard.get(address, id="g000000-01", part=part, offset=4)
    assert (rest["text"], rest["next"]) == ("d 1", None)
    assert dashboard.get(address, 404, id="g000000-01", part="turns/9/text")["fix"]


def test_token_columns_as_arrow_and_as_json(dashboard: Dashboard) -> None:
    address = f"/api/v1{dashboard.run}/episode/tokens"
    found = dashboard.client.get(address, params={"id": "g000000-02"})
    assert found.headers["content-type"] == "application/vnd.apache.arrow.stream"
    table = pa.ipc.open_stream(found.content).read_all()
    assert table.num_rows == 12
    rows: dict[str, Any] = table.to_pydict()
    assert rows["loss_mask"] == [i in (3, 4, 5, 7, 8, 9, 10, 11) for i in range(12)]
    assert rows["version"][2:6] == [None, 0, 0, 0]
    assert rows["version"][9:] == [1, 1, 1]
    assert rows["advantage"][3] == 1.0
    assert rows["advantage"][7] is None
    assert rows["mismatch"][3] == pytest.approx(0.25)
    assert rows["staleness"][3] == 0
    as_json = dashboard.client.get(
        address, params={"id": "g000000-02", "texts": True}, headers={"accept": "application/json"}
    ).json()
    assert as_json["entropy"] == rows["entropy"]
    assert as_json["text"] is None
    assert "tokenizer" in as_json["text_reason"]


def test_the_difference_of_siblings(dashboard: Dashboard) -> None:
    found = dashboard.get(f"{dashboard.run}/diff", id=["g000000-00", "g000000-01"])
    assert found["same_task"]
    assert [turn["same"] for turn in found["turns"]] == [False, True, False]
    assert found["turns"][0]["first_difference"] == 4
    assert found["first_divergent_turn"] == 0
    assert found["first_divergent_token"]["position"] == 10
    assert found["first_divergent_token"]["turns"] == [2, 2]
    reward = next(row for row in found["reward_parts"] if row["name"] == "reward")
    assert (reward["values"], reward["change"]) == ([0.0, 0.25], 0.25)
    same = dashboard.get(f"{dashboard.run}/diff", id=["g000000-01", "g000001-01"])
    assert same["first_divergent_token"]["position"] is None
    dashboard.get(f"{dashboard.run}/diff", 422, id=["g000000-00"])


def test_figures_of_tools(dashboard: Dashboard) -> None:
    rows = dashboard.get(f"{dashboard.run}/tools")["rows"]
    by_name = {(row["tool"], row["phase"]): row for row in rows}
    search = by_name["search", "trial"]
    assert (search["calls"], search["errors"]) == (STORED, 5)
    assert search["error_rate"] == pytest.approx(5 / STORED)
    assert search["p50_s"] == pytest.approx(0.25)
    assert by_name["search", "all"]["calls"] == STORED
    assert search["filter"] == 'tool("search").calls>0'
    total = dashboard.get(f"{dashboard.run}/episodes", filter=search["filter"])["total"]
    assert total == STORED
    by = dashboard.get(f"{dashboard.run}/tools", by="environment")["rows"]
    assert {row["environment"] for row in by} == {"catalog"}
    assert {row["phase"]: row["episodes"] for row in by} == {
        "all": STORED,
        "trial": STORED,
        "execution": STORED,
    }
    assert (search["episodes"], by_name["search", "all"]["episodes"]) == (STORED, STORED)


def test_single_calls_are_paged(dashboard: Dashboard) -> None:
    address = f"{dashboard.run}/calls"
    first = dashboard.get(address, tool="search", status="tool_error", limit=3)
    assert first["total"] == 5
    rest = dashboard.get(address, tool="search", status="tool_error", limit=3, cursor=first["next"])
    episodes = [row["episode"] for row in first["rows"] + rest["rows"]]
    assert episodes == [f"g00000{group}-01" for group in (4, 3, 2, 1, 0)]
    assert first["rows"][0]["arguments"] == '{"q": "search"}'
    assert first["rows"][0]["result"] == "found 1"


def test_the_ledger_gives_reasons(dashboard: Dashboard) -> None:
    page = dashboard.get(f"{dashboard.run}/ledger")
    events = [(row["event"], row["reason"], row["group"]) for row in page["rows"]]
    assert events == [
        ("dropped", "infra_failed", "g000005"),
        ("dropped", "zero_variance", "g000002"),
        ("re_leased", "the tool server was lost", "g000001"),
    ]
    assert all(row["meaning"] for row in page["rows"])
    assert page["rows"][1]["step"] == 1
    assert page["rows"][1]["at"] == pytest.approx(1.7e9 + 23 + 2)
    only = dashboard.get(f"{dashboard.run}/ledger", reason="zero_variance")
    assert only["total"] == 1
    summary = dashboard.get(f"{dashboard.run}/ledger/summary")
    assert summary["states"]["trained"] == 12
    assert summary["states"]["leased"] == 3
    assert summary["retries"] == 1
    assert len(summary["violations"]) == 3


def test_the_fleet_by_time(dashboard: Dashboard) -> None:
    found = dashboard.get(f"{dashboard.run}/fleet", buckets=10)
    assert found["workers"] == ["worker-0", "worker-1"]
    ran = sum(cell["running"] for cell in found["cells"]) * found["bucket_s"]
    assert ran == pytest.approx(2.0 * STORED, rel=1e-3)
    assert {round(cell["generate"], 3) for cell in found["cells"]} == {0.5}
    assert [push["step"] for push in found["pushes"]] == [1, 2]


def test_an_evaluation_has_errors_over_tasks(dashboard: Dashboard) -> None:
    found = dashboard.get(f"{dashboard.run}/evaluation")
    total = found["rows"][0]
    assert (total["by"], total["tasks"], total["lost"]) == ("all", 3, 1)
    assert total["pass_at_k"]["1"]["value"] == pytest.approx(0.5)
    assert total["pass_at_k"]["1"]["clusters"] == 3
    assert dashboard.get(f"{dashboard.run}/evaluation", 422, by="nothing")["code"] == "wrong-value"


def test_the_audit_says_who_asked(dashboard: Dashboard) -> None:
    (entry,) = dashboard.get(f"{dashboard.run}/audit")["entries"]
    assert (entry["actor"], entry["request"], entry["workers"]) == ("ann", "scale to 3 workers", 3)


def test_a_preview_sends_nothing(dashboard: Dashboard) -> None:
    address = f"/api/v1{dashboard.run}/steer/preview"
    found = dashboard.client.post(address, json={"kind": "scale", "workers": 1}).json()
    assert found["sentence"] == "2 of 3 workers end their episodes and then stop."
    assert (found["allowed"], found["reason"]) == (False, "no job writes to the run now")
    wrong = dashboard.client.post(address, json={"kind": "explode"})
    assert wrong.status_code == 422
    assert not (dashboard.root / "sample" / "requests").exists()


def test_a_recipe_and_the_state_of_the_index(dashboard: Dashboard) -> None:
    (attempt,) = dashboard.get(f"{dashboard.run}/config")["attempts"]
    assert 'name = "sample"' in attempt["toml"]
    health = dashboard.get(f"{dashboard.run}/health")
    assert health["problems"] == []
    assert health["coverage"] == {"episodes": STORED, "details": STORED, "complete": True}


def test_prometheus_has_the_newest_figures(dashboard: Dashboard) -> None:
    text = dashboard.client.get("/metrics").text
    assert 'trialrun_step{name="sample"' in text
    assert any(
        line.startswith("trialrun_episodes{") and "infra_failed" in line and line.endswith(" 2.0")
        for line in text.splitlines()
    )
    assert "trialrun_reward{" in text


def test_an_answer_that_is_known_is_not_sent_again(dashboard: Dashboard) -> None:
    address = f"/api/v1{dashboard.run}/episode"
    first = dashboard.client.get(address, params={"id": "g000000-01"})
    again = dashboard.client.get(
        address, params={"id": "g000000-01"}, headers={"if-none-match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


def test_unknown_runs_and_routes_are_problems_that_carry_a_fix(dashboard: Dashboard) -> None:
    for address in ("/runs/nothing/episodes", "/studies/nothing", "/nothing"):
        found = dashboard.get(address, 404)
        assert found["type"].startswith("urn:trialrun:problem:")
        assert found["fix"]
    wrong = dashboard.get(f"{dashboard.run}/episodes", 422, limit=0)
    assert wrong["code"] == "wrong-value"


def test_the_api_describes_itself(dashboard: Dashboard) -> None:
    paths = dashboard.get("/openapi.json")["paths"]
    assert "/api/v1/runs/{run}/episodes" in paths
    assert len(paths) > 25
