"""The index against the run directory: growing, killed, damaged, copied, replaced."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.dashboard.index.library import Library
from cluster.dashboard.index.run_index import RunIndex
from rollout.episode_schema import to_batch
from rollout.store.ledger_state import DropReason
from rollout.store.line_checks import with_checksum
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind, RunLayout
from tests.cluster.dashboard.conftest import Open
from tests.cluster.dashboard.sample_run import (
    CONFIG,
    GROUP,
    STORED,
    annotations_of,
    episode_of,
    failed,
    lease_of,
    write_group,
    write_sample_run,
)

OLD_RUNS = Path(__file__).parents[1] / "lifecycle" / "old_runs"
Opener = Callable[[Path], Library]
TABLES = (
    "SELECT episode, attempt, state, reason, step, round(advantage, 3) FROM episodes",
    "SELECT episode, attempt, grp, task, sample_index, why FROM leases",
    "SELECT line, event, reason, grp, task, episode, step FROM drops",
    "SELECT e.episode, e.attempt, d.* EXCLUDE (uid) FROM details d JOIN episodes e USING (uid)",
    "SELECT e.episode, e.attempt, c.* EXCLUDE (uid) FROM calls c JOIN episodes e USING (uid)",
)


def index_of(library: Library) -> RunIndex:
    """Return the index of the only run, refreshed and with all details."""
    (run,) = library.runs()
    index = library.open(run)
    refresh(index)
    return index


def refresh(index: RunIndex) -> None:
    index.refresh()
    while index.read_details(7, shared_sessions=False):
        pass


def contents(index: RunIndex) -> list[Any]:
    return [sorted(map(repr, index.rows(sql))) for sql in TABLES]


def test_following_a_run_gives_the_same_index_as_reading_it_whole(
    tmp_path: Path, library: Opener
) -> None:
    """Every kind of ledger event, applied one by one and all at once."""
    path = tmp_path / "runs" / "run"
    info = RunInfo(run="run", kind=RunKind.TRAIN, seed=1, created_at=1.0)
    with RunDirectory.create(path, CONFIG, info) as run:
        index = index_of(library(tmp_path / "runs"))
        names = [write_group(run, group) for group in range(4)]
        refresh(index)
        run.ledger.train(1, names[0])
        run.annotate(1, annotations_of(names[0], 1.0))
        refresh(index)
        run.ledger.drop(names[1][:2], DropReason.ZERO_VARIANCE, step=2)
        run.ledger.train(2, names[1][2:])
        run.annotate(2, annotations_of(names[1], 5.0))
        refresh(index)
        run.ledger.roll_back(1)
        refresh(index)
        run.ledger.train(2, [*names[1], *names[2]])
        run.annotate(2, annotations_of(names[1] + names[2], 3.0))
        lease = lease_of(9, 0)
        run.ledger.lease([lease])
        refresh(index)
        run.append(to_batch([failed(lease)]))
        again = run.ledger.re_lease(lease.episode, "lost")
        refresh(index)
        run.ledger.re_lease(again.episode, "lost again")
        refresh(index)
        followed = contents(index)
    whole = contents(index_of(_fresh(tmp_path)))
    assert followed == whole
    assert any("lost again" in row for row in whole[1])
    assert any("rolled_back" in row for row in whole[2])


def _fresh(tmp_path: Path) -> Library:
    from tests.cluster.dashboard.conftest import settings_for

    return Library(settings_for(tmp_path / "runs", tmp_path / "another-cache"))


def test_a_library_reads_only_what_is_new_after_it_was_closed(
    tmp_path: Path, library: Opener
) -> None:
    run = write_sample_run(tmp_path / "runs" / "sample", close=False)
    first = library(tmp_path / "runs")
    index = index_of(first)
    before = contents(index)
    first.close()
    more = write_group(run, 7)
    run.close()
    index = index_of(library(tmp_path / "runs"))
    assert index.episodes == STORED + GROUP
    assert [row for row in contents(index)[0] if row in before[0]] == before[0]
    assert {row[0] for row in index.rows("SELECT episode FROM episodes WHERE uid >= 22")} == {*more}


@pytest.mark.parametrize("lost", ["all", "half", "a torn line", "a line", "a field"])
def test_episodes_that_the_index_lacks_are_read_from_the_segment(
    tmp_path: Path, library: Opener, lost: str
) -> None:
    path = tmp_path / "runs" / "sample"
    write_sample_run(path)
    (lines,) = (path / "index").glob("*.jsonl")
    content = lines.read_bytes()
    rows = content.splitlines(keepends=True)
    if lost == "all":
        shutil.rmtree(path / "index")
    elif lost in ("a line", "a field"):
        rows[7] = b"nonsense\n" if lost == "a line" else rows[7].replace(b'"task"', b'"tusk"')
        lines.write_bytes(b"".join(rows))
    else:
        half = content[: content.index(b"\n", len(content) // 2) + 1]
        lines.write_bytes(half if lost == "half" else half[:-20])
    index = index_of(library(tmp_path / "runs"))
    assert index.episodes == STORED
    assert index.coverage.complete
    lines.parent.mkdir(exist_ok=True)
    lines.write_bytes(content)  # the index that comes later doubles nothing
    refresh(index)
    assert index.rows("SELECT count(*), count(DISTINCT (episode, attempt)) FROM episodes") == [
        (STORED, STORED)
    ]


def test_a_half_written_segment_is_noted_and_read_when_it_is_whole(
    tmp_path: Path, library: Opener
) -> None:
    path = tmp_path / "runs" / "sample"
    run = write_sample_run(path, close=False)
    (segment,) = (path / "episodes").glob("*.arrows")
    (lines,) = (path / "index").glob("*.jsonl")
    whole, indexed = segment.stat().st_size, lines.stat().st_size
    lease = lease_of(8, 0)
    run.ledger.lease([lease])
    run.append(to_batch([episode_of(lease)]))
    run.close()
    content, index_content = segment.read_bytes(), lines.read_bytes()
    segment.write_bytes(content[: whole + 500])
    lines.write_bytes(index_content[:indexed])
    index = index_of(library(tmp_path / "runs"))
    assert index.episodes == STORED
    (note,) = index.damage
    assert (note.severity, f"byte {whole}" in note.where) == ("note", True)
    segment.write_bytes(content)
    lines.write_bytes(index_content)
    refresh(index)
    assert index.episodes == STORED + 1


def test_a_damaged_episode_is_said_and_the_others_are_shown(
    tmp_path: Path, open_dashboard: Open
) -> None:
    path = tmp_path / "runs" / "sample"
    write_sample_run(path)
    (segment,) = (path / "episodes").glob("*.arrows")
    content = bytearray(segment.read_bytes())
    middle = bytes(content).index(b"try 2", len(content) // 2)
    for place in range(middle - 400, middle + 400):
        content[place] ^= 0x5A
    segment.write_bytes(bytes(content))
    found = open_dashboard(tmp_path / "runs")
    found.read()
    rows = found.rows()
    assert len(rows) == STORED
    damaged = [row for row in rows if row["error"] == "damaged"]
    assert 1 <= len(damaged) <= 3
    health = found.get(f"{found.run}/health")
    assert any("damaged" in problem["what"] for problem in health["problems"])
    for row in damaged:
        for route in ("episode", "episode/tokens"):
            answer = found.get(f"{found.run}/{route}", 409, id=row["episode"])
            assert (answer["code"], bool(answer["fix"])) == ("damaged", True)
    fine = next(row for row in rows if row["error"] != "damaged")
    found.get(f"{found.run}/episode", id=fine["episode"])


def test_random_damage_never_becomes_a_server_error(tmp_path: Path, open_dashboard: Open) -> None:
    """Bytes are flipped all over the run, a hundred at a time."""
    from random import Random

    random = Random(5)
    for number in range(4):
        path = tmp_path / f"runs-{number}" / "sample"
        write_sample_run(path)
        for file in [file for file in path.rglob("*") if file.is_file()]:
            content = bytearray(file.read_bytes())
            for _ in range(min(len(content) // 200, 100)):
                content[random.randrange(len(content))] = random.randrange(256)
            file.write_bytes(bytes(content))
        found = open_dashboard(path.parent)
        (run,) = found.get("/runs")["runs"]
        address = f"/api/v1/runs/{run['id']}"
        routes = ("", "/episodes", "/facets", "/overview", "/health", "/ledger", "/config", "/logs",
                  "/groups", "/tools", "/fleet", "/audit", "/evaluation", "/metrics")  # fmt: skip
        for route in routes:
            answer = found.client.get(f"{address}{route}")
            assert answer.status_code < 500, (route, answer.text)
        rows = found.client.get(f"{address}/episodes").json().get("rows", [])
        for row in rows:
            answer = found.client.get(f"{address}/episode", params={"id": row["episode"]})
            assert answer.status_code < 500, answer.text


def test_lines_that_are_no_json_are_left_out_and_named(
    tmp_path: Path, open_dashboard: Open
) -> None:
    path = tmp_path / "runs" / "sample"
    write_sample_run(path)
    with (path / "ledger" / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "finished", "episode": 3}\nnot json\n[1]\n\xff\xfe\n')
        file.write(b'{"event":"dropped","reason":"stale","episodes":["g000004-01"],"step":null}\n')
    with (path / "metrics" / "metrics.jsonl").open("ab") as file:
        whole = with_checksum('{"step": 3, "reward": NaN}').encode()
        file.write(b'{"step": "x"}\nnonsense\n' + whole + b"\n")
    found = open_dashboard(tmp_path / "runs")
    found.read()
    states = {row["episode"]: row["state"] for row in found.rows()}
    assert (states["g000004-01"], states["g000000-00"]) == ("dropped", "trained")
    assert found.get("/runs")["runs"][0]["step"] == 3
    where = [problem["where"] for problem in found.get(f"{found.run}/health")["problems"]]
    assert sum(place.startswith("ledger/events.jsonl:") for place in where) == 4
    assert sum(place.startswith("metrics/metrics.jsonl:") for place in where) == 2


def test_looking_at_a_run_changes_no_file_of_it(tmp_path: Path, open_dashboard: Open) -> None:
    path = tmp_path / "runs" / "sample"
    write_sample_run(path)

    def tree() -> list[tuple[str, int, int]]:
        found = sorted(path.rglob("*"))
        return [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in found]

    before = tree()
    found = open_dashboard(tmp_path / "runs")
    found.read()
    for route in ("episodes", "overview", "ledger", "tools", "fleet", "audit", "logs", "config"):
        found.get(f"{found.run}/{route}")
    found.client.get(f"/api/v1{found.run}/export", params={"format": "parquet"})
    assert tree() == before


@pytest.mark.parametrize("name", ["train", "eval", "collect"])
def test_runs_of_older_versions_are_read(name: str, tmp_path: Path, open_dashboard: Open) -> None:
    shutil.copytree(OLD_RUNS / name, tmp_path / "runs" / "sample")
    found = open_dashboard(tmp_path / "runs")
    found.read()
    rows = found.rows()
    assert rows
    assert found.get(f"{found.run}/health")["problems"] == []
    for row in rows:
        detail = found.get(f"{found.run}/episode", id=row["episode"])
        assert detail["turns"]
    assert found.get("/runs")["runs"][0]["kind"] == name


def test_a_copy_of_a_run_is_another_run(tmp_path: Path, open_dashboard: Open) -> None:
    write_sample_run(tmp_path / "runs" / "sample")
    shutil.copytree(tmp_path / "runs" / "sample", tmp_path / "runs" / "copy")
    found = open_dashboard(tmp_path / "runs")
    runs = found.get("/runs")["runs"]
    assert [run["name"] for run in runs] == ["copy", "sample"]
    assert len({run["id"] for run in runs}) == 2
    for run in runs:
        assert found.get(f"/runs/{run['id']}/episodes")["total"] == STORED


def test_a_run_that_was_written_anew_is_read_anew(tmp_path: Path, library: Opener) -> None:
    path = tmp_path / "runs" / "sample"
    write_sample_run(path)
    books = library(tmp_path / "runs")
    index = index_of(books)
    assert index.episodes == STORED
    shutil.rmtree(path)
    info = RunInfo(run="sample", kind=RunKind.TRAIN, seed=1, created_at=1.7e9)
    with RunDirectory.create(path, CONFIG, info) as run:
        write_group(run, 0)
        refresh(index)
    assert index.rows("SELECT count(*) FROM episodes") == [(GROUP,)]
    assert index.damage == []


def test_a_damaged_index_file_is_made_again(tmp_path: Path, library: Opener) -> None:
    write_sample_run(tmp_path / "runs" / "sample")
    first = library(tmp_path / "runs")
    index_of(first)
    first.close()
    (file,) = (tmp_path / "cache").glob("*.duckdb")
    file.write_bytes(b"no database" * 1_000)
    assert index_of(library(tmp_path / "runs")).episodes == STORED


def test_a_run_without_a_readable_description_is_listed(
    tmp_path: Path, open_dashboard: Open
) -> None:
    write_sample_run(tmp_path / "runs" / "sample")
    RunLayout(tmp_path / "runs" / "sample").run_json.write_bytes(b'{"run": ')
    found = open_dashboard(tmp_path / "runs")
    (run,) = found.get("/runs")["runs"]
    assert run["state"] == "unreadable"
    assert "run.json" in run["last_error"]
    answer = found.get(f"/runs/{run['id']}/episodes", 409)
    assert answer["fix"]
