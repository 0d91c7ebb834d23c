"""`trialrun episodes ls|diff|grep|tail|export|failures`: the dashboard's filters in a terminal."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.cli.main import main
from rollout.episode import Outcome
from rollout.episode_schema import to_batch
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind
from tests.cluster.dashboard.sample_run import CONFIG, episode_of, lease_of, write_sample_run
from tests.cluster.dashboard.test_hostile import HOSTILE, append_hostile, hostile_episode

_MOVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


class Terminal:
    """Runs `trialrun episodes` and returns its exit code, output and errors."""

    def __init__(self, monkeypatch: Any, capsys: Any, run: Path) -> None:
        self._monkeypatch, self._capsys, self.run = monkeypatch, capsys, run

    def __call__(self, command: str, *arguments: str) -> tuple[int, str, str]:
        words = ["trialrun", "episodes", command, str(self.run), *arguments]
        self._monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as end:
            main()
        out, err = self._capsys.readouterr()
        return int(end.value.code or 0), out, err

    def json(self, command: str, *arguments: str) -> Any:
        code, out, err = self(command, *arguments, "--json")
        assert (code, out.count("\n")) == (0, 1), err
        return json.loads(out)

    def lines(self, command: str, *arguments: str) -> list[Any]:
        code, out, err = self(command, *arguments, "--json")
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_sample_run(tmp_path / "sample")
    return Terminal(monkeypatch, capsys, tmp_path / "sample")


def test_episodes_are_listed_by_filter_and_sort(terminal: Terminal) -> None:
    everything = terminal.json("ls", "--limit", "1000")
    assert everything["total"] == len(everything["episodes"]) > 10
    chosen = terminal.json("ls", "-w", 'reward>0 and tool("search").calls>0', "--sort", "reward")
    assert 0 < chosen["total"] < everything["total"]
    rewards = [row["reward"] for row in chosen["episodes"]]
    assert rewards == sorted(rewards) and min(rewards) > 0
    code, out, _ = terminal("ls", "--limit", "3")
    assert code == 0 and out.count("\n") == 5  # a title, a heading and three rows
    assert everything["episodes"][0]["episode"] in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("ls", "-w", "rewrd<1"), 2, "there is no field 'rewrd' (at character 1): did you mean"),
        (("ls", "-w", "reward<"), 2, "expected a number or a text in quotes"),
        (("ls", "--sort", "nothing"), 2, "there is no field 'nothing'"),
        (("tail", "-w", "reward<<1"), 2, "at character 8"),
        (("grep", "(", "-E"), 2, "the regular expression cannot be read"),
        (("diff", "g", "nobody"), 2, "several episodes begin with 'g'"),
        (("diff", "nobody", "g"), 3, "expected an episode called 'nobody'"),
        (("diff", "g000000-00"), 2, "expected two or more episodes, found 1"),
        (("export", "file.csv"), 2, "ends in .parquet or .jsonl"),
        (("export", "no/where/x.jsonl"), 3, "expected the folder"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(
    terminal: Terminal, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, out, err = terminal(*arguments)
    assert (found, out) == (code, "")
    assert said in err and err.count("\n") == 1


def test_failures_are_summed_up_with_an_example(terminal: Terminal) -> None:
    found = terminal.json("failures")
    by_reason = {(row["what"], row["reason"]): row for row in found["rows"]}
    listed = terminal.json("ls", "--limit", "1000")["episodes"]
    for (what, reason), row in by_reason.items():
        key = "outcome" if what == "outcome" else "reason"
        same = [one for one in listed if one[key] == reason]
        assert row["example"] in [one["episode"] for one in same]
        assert terminal.json("ls", "-w", row["filter"])["total"] == len(same)
    assert any(row["error"] for row in found["rows"])
    assert any(what == "dropped" for what, _ in by_reason)
    assert terminal.json("failures", "-w", "outcome=answered and state=trained")["rows"] == []


def test_errors_that_differ_in_numbers_are_one_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info = RunInfo(run="r", kind=RunKind.TRAIN, seed=1, created_at=1.7e9)
    with RunDirectory.create(tmp_path / "run", CONFIG, info) as run:
        for number in range(6):
            said = f"port {5000 + number} refused" if number < 4 else "disk full"
            failed = {"outcome": Outcome.INFRA_FAILED, "reward": None, "error": said}
            run.append(to_batch([episode_of(lease_of(number, 0), **failed)]))
    rows = Terminal(monkeypatch, capsys, tmp_path / "run").json("failures")["rows"]
    assert [(row["episodes"], row["error"]) for row in rows] == [
        (4, "port 5003 refused"),
        (2, "disk full"),
    ]


def test_siblings_are_compared(terminal: Terminal) -> None:
    first, second = (
        row["episode"] for row in terminal.json("ls", "--sort", "uid", "--limit", "2")["episodes"]
    )
    found = terminal.json("diff", first, second)
    assert [row["episode"] for row in found["rows"]] == [first, second]
    code, out, _ = terminal("diff", first, second)
    assert code == 0 and "reward" in out and first in out


def test_hits_are_lines(terminal: Terminal) -> None:
    hits = terminal.lines("grep", "SEARCH", "--limit", "3")
    assert len(hits) == 3 and all(hit["match"].lower() == "search" for hit in hits)
    assert terminal.lines("grep", "SEARCH", "--case") == []
    assert terminal.lines("grep", "s.arch", "-E", "-w", "reward>1e9") == []
    code, out, err = terminal("grep", "s.arch", "-E", "--limit", "2")
    assert (code, out.count("\n")) == (0, 2) and "the first 2 hits" in err


def test_the_newest_are_last(terminal: Terminal) -> None:
    rows = terminal.lines("tail", "-n", "4")
    assert [row["uid"] for row in rows] == sorted(row["uid"] for row in rows)
    assert len(terminal("tail", "-n", "2", "-f")[1].splitlines()) == 2  # nothing writes to it


def test_a_selection_is_taken_along(terminal: Terminal, tmp_path: Path) -> None:
    wanted = terminal.json("ls", "-w", "reward>0", "--limit", "1000")
    names = sorted(row["episode"] for row in wanted["episodes"])
    target = tmp_path / "good.parquet"
    found = terminal.json("export", str(target), "-w", "reward>0")
    assert found["bytes"] == target.stat().st_size
    assert sorted(pq.read_table(target)["episode"].to_pylist()) == names
    code, _, err = terminal("export", str(target), "-w", "reward>0")
    assert code == 2 and "exists" in err
    terminal.json("export", str(tmp_path / "rows.jsonl"), "-w", "reward>0", "--rows")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted(row["episode"] for row in rows) == names


def test_hostile_texts_move_no_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info = RunInfo(run="sample", kind=RunKind.TRAIN, seed=1, created_at=1.7e9)
    with RunDirectory.create(tmp_path / "run", CONFIG, info) as run:
        for number, (name, text) in enumerate(HOSTILE.items()):
            append_hostile(run, hostile_episode(number, name, text))
        run.layout.log.write_text("\x1b[31mred\x07\n")
    terminal = Terminal(monkeypatch, capsys, tmp_path / "run")
    names = [row["episode"] for row in terminal.json("ls", "--limit", "50")["episodes"]]
    shown = [
        terminal("ls", "--limit", "50"),
        terminal("tail", "-n", "50"),
        terminal("failures"),
        terminal("grep", "."),
        terminal("grep", ".", "-E"),
        terminal("diff", names[0], names[1]),
        *(terminal("show", name) for name in names),
    ]
    for code, out, _ in shown:
        assert code == 0 and out and not _MOVES.search(out)
