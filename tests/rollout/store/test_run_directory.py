"""A run directory is readable whatever happened to its writer."""

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from envs.errors import MissingError, StoreError
from rollout.episode import Episode, Outcome
from rollout.episode_schema import EPISODE_SCHEMA, VERSION_KEY, from_batch, to_batch
from rollout.store.control import ControlEvent, ScaleRequest
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.store.run_reader import EpisodeFilter, RunReader
from tests.rollout.conftest import lease_in

RUN = RunInfo(run="run-1", seed=7, created_at=1.5, command="trialrun train", versions={"ray": "2"})
MakeEpisode = Callable[..., Episode]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


def ids(reader: RunReader, wanted: EpisodeFilter | None = None) -> list[str]:
    return [row.episode for row in reader.episodes(wanted)]


def test_what_was_written_is_read_back(path: Path, episode_with: MakeEpisode) -> None:
    episodes = [episode_with(f"e{i}", tokens=8 + i) for i in range(20)]
    with RunDirectory.create(path, "[env]\n", RUN) as directory:
        directory.append(to_batch(episodes[:17]))
        directory.append(to_batch(episodes[17:]))
        directory.append(to_batch([]))
        directory.record_metrics(0, {"loss": 0.5, "kl": float("nan")})
        directory.record_metrics(1, {"loss": 0.4})
        directory.record_metrics(0, {"loss": 0.25})
        directory.annotate(3, pa.table({"episode": ["e1"], "advantage": [0.5]}))
        directory.record_control(ControlEvent(at=2.0, actor="cli", request=ScaleRequest(workers=4)))
    reader = RunReader(path)
    assert (reader.info, reader.recipe) == (RUN, {"env": {}})
    rows = reader.episodes()
    assert [(row.episode, row.tokens, row.row) for row in rows] == [
        (f"e{i}", 8 + i, i % 8 if i < 16 else i - 16 if i < 17 else i - 17) for i in range(20)
    ]
    assert repr(from_batch(reader.batch(rows[::-1]))) == repr(episodes[::-1])
    assert repr(reader.episode("e13")) == repr(episodes[13])
    assert [(row.step, row.values) for row in reader.metrics()] == [
        (0, {"loss": 0.25}),
        (1, {"loss": 0.4}),
    ]
    assert reader.annotations(3).to_pylist() == [{"episode": "e1", "advantage": 0.5}]
    row = json.loads((path / "control.jsonl").read_text())
    assert row["request"] == {"kind": "scale", "workers": 4}
    with pytest.raises(MissingError, match="annotations of step 4"):
        reader.annotations(4)


def test_a_segment_is_an_arrow_stream_that_others_can_read(
    path: Path, episode_with: MakeEpisode
) -> None:
    with RunDirectory.create(path, "", RUN) as directory:
        directory.append(to_batch([episode_with("a")]))
    with pa.ipc.open_stream((path / "episodes" / "000001.arrows").read_bytes()) as stream:
        assert stream.read_all()["episode"].to_pylist() == ["a"]


def test_an_episode_is_found_by_a_unique_prefix(path: Path, episode_with: MakeEpisode) -> None:
    with RunDirectory.create(path, "", RUN) as directory:
        directory.append(to_batch([episode_with(name) for name in ("ab", "abc", "b")]))
    reader = RunReader(path)
    assert reader.episode("ab").lease.episode == "ab"
    assert reader.episode("abc").lease.episode == "abc"
    with pytest.raises(MissingError, match="found 2: ab, abc"):
        reader.episode("a")
    with pytest.raises(MissingError, match="found 0"):
        reader.episode("x")


def test_the_last_attempt_of_each_episode_is_listed_by_id(
    path: Path, episode_with: MakeEpisode
) -> None:
    attempts = [lease_in("g", 1, 2), lease_in("g", 0), lease_in("g", 1, 1), lease_in("g", 1)]
    with RunDirectory.create(path, "", RUN) as directory:
        for attempt in attempts:
            directory.append(to_batch([episode_with(lease=attempt)]))
    rows = RunReader(path).last_attempts()
    assert [(row.episode, row.attempt) for row in rows] == [("g.0", 0), ("g.1", 2)]


def test_rows_are_filtered(path: Path, episode_with: MakeEpisode) -> None:
    members = [lease_in("g", 0), lease_in("g", 1), lease_in("h", 0)]
    with RunDirectory.create(path, "", RUN) as directory:
        directory.ledger.lease(members[:2])
        directory.append(to_batch([episode_with(lease=member) for member in members]))
        directory.append(to_batch([episode_with("x", outcome=Outcome.INFRA_FAILED)]))
        directory.append(to_batch([episode_with("t", source="teacher")]))
        directory.ledger.finish(members[1])
        directory.ledger.train(3, ["g.1"])
    reader = RunReader(path)
    assert ids(reader, EpisodeFilter(outcome="infra_failed")) == ["x"]
    assert ids(reader, EpisodeFilter(task="task-g")) == ["g.0", "g.1"]
    assert ids(reader, EpisodeFilter(source="teacher")) == ["t"]
    assert ids(reader, EpisodeFilter(group="h", split="train")) == ["h.0"]
    assert ids(reader, EpisodeFilter(step=3)) == ["g.1"]


def test_a_live_run_is_followed_across_segments(path: Path, episode_with: MakeEpisode) -> None:
    with RunDirectory.create(path, "", RUN, segment_bytes=8_000) as directory:
        reader = RunReader(path)
        for count in range(1, 13):
            directory.append(to_batch([episode_with(f"e{count}")]))
            assert ids(reader) == [f"e{i}" for i in range(1, count + 1)]
        assert len(directory.layout.segments()) > 1
    with RunDirectory.open(path) as directory:
        before = directory.layout.segments()
        directory.append(to_batch([episode_with("later")]))
        assert len(directory.layout.segments()) == len(before) + 1
    assert ids(reader)[-1] == "later"


def test_the_index_is_only_a_cache(path: Path, episode_with: MakeEpisode) -> None:
    with RunDirectory.create(path, "", RUN) as directory:
        for i in range(6):
            directory.append(to_batch([episode_with(f"e{i}.{j}") for j in range(3)]))
    expected = RunReader(path).episodes()
    index = path / "index" / "000001.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    damaged = [
        lines[:7],
        lines[3:],
        lines[:3] + lines[6:],
        [*lines[:4], "{}\n", *lines[4:]],
        ["rubbish\n", *lines],
    ]
    for content in damaged:
        index.write_text("".join(content))
        assert RunReader(path).episodes() == expected
    index.unlink()
    assert RunReader(path).episodes() == expected
    assert RunReader(path).episode("e4.1").lease.episode == "e4.1"


def test_a_cut_at_any_point_costs_only_what_lay_behind_it(
    path: Path, tmp_path: Path, episode_with: MakeEpisode
) -> None:
    members = [lease_in(f"g{i}", 0) for i in range(12)]
    with RunDirectory.create(path, "[env]\n", RUN, segment_bytes=20_000) as directory:
        for i, member in enumerate(members):
            directory.ledger.lease([member])
            directory.append(to_batch([episode_with(lease=member)]))
            directory.ledger.finish(member)
            directory.record_metrics(i, {"loss": 1.0})
    whole = RunReader(path).episodes()
    assert len({row.segment for row in whole}) > 1
    draw = random.Random(5)
    for trial in range(40):
        copy = tmp_path / f"copy-{trial}"
        shutil.copytree(path, copy)
        cuts: dict[str, int] = {}
        for file in sorted(copy.rglob("*")):
            if file.is_file() and (trial % 3 or file.suffix == ".arrows"):
                content = file.read_bytes()
                cuts[file.name] = draw.randrange(len(content) + 1)
                file.write_bytes(content[: cuts[file.name]])
        reader = RunReader(copy)
        expected = [
            row for row in whole if row.offset + row.nbytes <= cuts.get(f"{row.segment}.arrows", 0)
        ]
        assert reader.episodes() == expected
        if expected:
            read = reader.batch(expected).column("episode").to_pylist()
            assert read == [row.episode for row in expected]
        assert len(reader.metrics()) <= len(members)
        assert len(reader.ledger().entries) <= len(members)
        shutil.rmtree(copy)


WRITER = """
import sys
from pathlib import Path
from rollout.episode_schema import to_batch, from_batch
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
import pyarrow as pa
from dataclasses import replace

path, template = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
with pa.ipc.open_stream(template) as stream:
    [episode] = from_batch(stream.read_next_batch())
if (path / "run.json").exists():
    directory = RunDirectory.open(path, segment_bytes=100_000)
else:
    directory = RunDirectory.create(
        path, "", RunInfo(run="run-1", seed=7, created_at=1.0), segment_bytes=100_000)
first = int(sys.argv[3])
for number in range(first, first + 100_000):
    lease = replace(
        episode.lease, episode=f"e{number}", group=f"g{number}", sample_index=0, attempt=0)
    directory.ledger.lease([lease])
    directory.append(to_batch([replace(episode, lease=lease)]))
    directory.ledger.finish(lease)
    print(number, flush=True)
"""


def start_writer(path: Path, template: Path, first: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(template), str(first)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


@pytest.fixture
def template(tmp_path: Path, episode_with: MakeEpisode) -> Path:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, EPISODE_SCHEMA) as stream:
        stream.write_batch(to_batch([episode_with()]))
    file = tmp_path / "template.arrows"
    file.write_bytes(sink.getvalue())
    return file


def test_a_killed_writer_loses_nothing_that_it_acknowledged(path: Path, template: Path) -> None:
    acknowledged, kill_at = 0, random.randrange(20, 200)
    with start_writer(path, template, 0) as writer:
        assert writer.stdout is not None
        # What the pipe still holds after the kill was acknowledged, too: read it to its end.
        for line in writer.stdout:
            acknowledged = int(line) + 1
            if acknowledged == 1:
                with pytest.raises(StoreError, match=f"found process {writer.pid}: stop it"):
                    RunDirectory.open(path)
            if acknowledged >= kill_at:
                writer.kill()
        assert writer.wait(30) == -signal.SIGKILL
    stored = ids(RunReader(path))
    assert stored[:acknowledged] == [f"e{number}" for number in range(acknowledged)]
    assert len(stored) <= acknowledged + 1
    with RunDirectory.open(path) as directory:
        directory.recover(-1)
        assert len(directory.ledger.ready_groups()) == len(stored)
        # The kill may have hit between lease and append; that lease is still open.
        assert len(directory.ledger.open_leases()) == len(directory.ledger.groups) - len(stored)


def test_there_is_one_writer_at_a_time(path: Path) -> None:
    with RunDirectory.create(path, "", RUN), pytest.raises(StoreError, match="no other writer"):
        RunDirectory.open(path)
    RunDirectory.open(path).close()


FULL_DISK = """
import sys, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
"""


def test_a_full_disk_is_one_clear_error_and_the_past_is_intact(path: Path, template: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK + WRITER, str(path), str(template), "0", "60000"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=60,
    )
    acknowledged = len(done.stdout.splitlines())
    assert acknowledged > 3
    message = done.stderr.splitlines()[-1]
    assert message.startswith("envs.errors.StoreError: could not write 1 episodes (e")
    assert "File too large. It is not stored; everything written before it is intact" in message
    assert ids(RunReader(path)) == [f"e{i}" for i in range(acknowledged)]


def test_after_a_failed_write_the_segment_can_be_written_on(
    path: Path, episode_with: MakeEpisode
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunDirectory.create(path, "", RUN) as directory:
        directory.append(to_batch([episode_with("a")]))
        size = (path / "episodes" / "000001.arrows").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1_000, hard))
        try:
            with pytest.raises(StoreError, match=r"could not write 2 episodes \(b, c\)"):
                directory.append(to_batch([episode_with("b"), episode_with("c")]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (path / "episodes" / "000001.arrows").stat().st_size == size
        directory.append(to_batch([episode_with("d")]))
    assert ids(RunReader(path)) == ["a", "d"]


def test_wrong_folders_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="found nothing at"):
        RunReader(path)
    path.mkdir()
    with pytest.raises(MissingError, match=r"found no run\.json"):
        RunDirectory.open(path)
    (path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"new or empty folder, found \['thesis\.tex'\]"):
        RunDirectory.create(path, "", RUN)
    RunDirectory.create(tmp_path / "new", "", RUN).close()
    with pytest.raises(StoreError, match=r"found the run run-1 in .*resume it"):
        RunDirectory.create(tmp_path / "new", "", RUN)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="could not make the folder"):
        RunDirectory.create(tmp_path / "file" / "run", "", RUN)


def test_a_creation_that_was_killed_can_be_repeated(path: Path, episode_with: MakeEpisode) -> None:
    RunDirectory.create(path, "", RUN).close()
    for name in ("manifest.jsonl", "control.jsonl"):
        (path / name).unlink()
    (path / "run.json").rename(path / ".run.json.new")
    with RunDirectory.create(path, "", RUN) as directory:
        directory.append(to_batch([episode_with("a")]))
    assert ids(RunReader(path)) == ["a"]


def test_newer_runs_and_segments_are_refused(path: Path, episode_with: MakeEpisode) -> None:
    with RunDirectory.create(path, "", RUN) as directory:
        batch = to_batch([episode_with("a")])
        with pytest.raises(StoreError, match="expected a batch in EPISODE_SCHEMA"):
            directory.append(batch.drop_columns(["seed"]))
    newer = EPISODE_SCHEMA.with_metadata({VERSION_KEY: b"99"})
    (path / "episodes" / "000001.arrows").write_bytes(newer.serialize())
    with pytest.raises(StoreError, match="version 99: a newer trialrun wrote them"):
        RunReader(path).episodes()
    (path / "run.json").write_text(RUN.model_copy(update={"layout_version": 99}).model_dump_json())
    with pytest.raises(StoreError, match="a newer trialrun wrote it"):
        _ = RunReader(path).info
    (path / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"run\.json: expected a run's description"):
        _ = RunReader(path).info
