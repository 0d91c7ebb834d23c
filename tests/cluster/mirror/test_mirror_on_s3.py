"""Mirrors on a real S3 server, which is killed, cut off and slowed down; runs are killed too."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.config.run_config import RunConfig
from cluster.lifecycle.mirror_process import MirrorState, read_state
from cluster.lifecycle.mirroring import mirror_address
from cluster.lifecycle.opening import Resume, open_run
from cluster.progress import Progress
from envs.errors import ConfigError, InfraError
from rollout.episode_schema import to_batch
from rollout.mirror.head import DATA, read_head
from rollout.mirror.place import Place
from rollout.store.ledger_state import State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import RunReader
from tests.cluster.mirror.played_run import play, recipe
from tests.cluster.mirror.s3_server import BUCKET, KEYS, Link, S3Server, open_server
from tests.rollout.conftest import make_episode
from tests.rollout.mirror.mirrored_run import check_invariants, go_on, save_checkpoint
from tests.waiting import expect_within

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server(interop_bin: Path) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as environ:
        for name, value in KEYS.items():
            environ.setenv(name, value)
        with open_server(interop_bin.parent / "storage" / "bin" / "moto_server") as started:
            yield started


@pytest.fixture
def link(server: S3Server) -> Iterator[Link]:
    opened = Link(server.port)
    yield opened
    opened.close()


@pytest.fixture
def overrides_in(
    link: Link, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., list[str]]:
    def made(cluster: str, *more: str) -> list[str]:
        url = f"s3://{BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"
        places = [f"run.dir={tmp_path / cluster}", f"mirror.url={url}"]
        return [*places, f"mirror.endpoint={link.endpoint}", *more]

    return made


def place_of(config: RunConfig) -> Place:
    return Place(mirror_address(config, config.path))


def state_of(config: RunConfig) -> MirrorState:
    return read_state(RunLayout(config.path)) or MirrorState(address="", state="none")


def new_run(config: RunConfig) -> RunDirectory:
    return open_run(RunKind.TRAIN, config.path, config, Resume.NO, Progress())


Overrides = Callable[..., list[str]]


def test_a_server_that_dies_and_comes_back(
    overrides_in: Overrides, link: Link, capfd: pytest.CaptureFixture[str]
) -> None:
    here, there = recipe(overrides_in("here")), recipe(overrides_in("there"))
    with new_run(here) as run:
        go_on(run, 2)
        expect_within(120, lambda: state_of(here).state == "up to date", "mirrored")
        link.cut()
        go_on(run, 4)
        expect_within(120, lambda: state_of(here).state == "failing", "the failure is noticed")
        assert "did not" in state_of(here).problem
        go_on(run, 5)
        lacks = state_of(here).behind
        link.mend()
        expect_within(120, lambda: state_of(here).state == "up to date", "the mirror has caught up")
        go_on(run, 6)
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("the mirror falls behind") == 1
    assert said.count("takes files again") == 1
    assert "files" in lacks
    play(there, 8, 12, Resume.REQUIRED)
    check_invariants(RunReader(there.path), 8)


def test_a_server_that_comes_back_empty_is_filled_again(
    server: S3Server, overrides_in: Overrides
) -> None:
    here, there = recipe(overrides_in("here")), recipe(overrides_in("there"))
    with new_run(here) as run:
        go_on(run, 4)
        expect_within(120, lambda: state_of(here).state == "up to date", "mirrored")
        server.kill()
        go_on(run, 5)
        server.start()
        expect_within(120, lambda: read_head(place_of(here)) is not None, "filled")
    assert state_of(here).state == "up to date"
    shutil.rmtree(here.path)
    play(there, 6, 12, Resume.REQUIRED)
    check_invariants(RunReader(there.path), 6)


def append_seconds(config: RunConfig, link: Link, rate: float) -> float:
    """Return how long 200 appends took; the link passes `rate` bytes per second meanwhile."""
    batch = to_batch([make_episode(tokens=1_000)])
    with new_run(config) as run:
        if config.mirror.url:
            expect_within(120, lambda: state_of(config).state == "up to date", "mirrored")
            link.rate = rate
        started = time.perf_counter()
        for _ in range(200):
            run.append(batch)
        took = time.perf_counter() - started
        if rate:
            save_checkpoint(run.layout, 2, 4 * 2**20)
            expect_within(120, lambda: state_of(config).behind_bytes > 4 * 2**20, "far behind")
        link.rate = 0.0
    return took


def test_a_slow_server_holds_nothing_up(overrides_in: Overrides, link: Link) -> None:
    """The ratio is printed (`-s`), and not asserted: this machine has other work, too."""
    plain = append_seconds(
        recipe(overrides_in("a", "mirror.url=''", "mirror.endpoint=''")), link, 0
    )
    config = recipe(overrides_in("b"))
    slow = append_seconds(config, link, 50_000)
    rows = len(RunReader(config.path).episodes())
    sys.stderr.write(f"200 appends: {plain:.3f} s alone, {slow / plain:.2f} times that mirrored\n")
    assert rows == 200, "everything was written while the mirror was far behind"
    assert state_of(config).state == "up to date", "and then it has caught up"


def test_a_hanging_server_bounds_the_end(overrides_in: Overrides, link: Link) -> None:
    config = recipe(overrides_in("here", "mirror.final_wait_s=2"))
    with new_run(config) as run:
        expect_within(120, lambda: state_of(config).state == "up to date", "mirrored")
        link.rate = 0.001
        go_on(run, 2)
        ends = time.monotonic()
    assert time.monotonic() - ends < 30
    assert RunReader(config.path).ledger().last_step == 2
    link.cut()


def test_a_run_killed_in_the_middle_of_an_upload_goes_on_elsewhere(
    overrides_in: Overrides, link: Link
) -> None:
    tokens = 3_000
    here, there = recipe(overrides_in("here")), recipe(overrides_in("there"))
    program = [sys.executable, "-m", "tests.cluster.mirror.played_run", "100000", str(tokens)]
    running = subprocess.Popen([*program, *overrides_in("here")], cwd=ROOT)
    try:
        expect_within(120, lambda: state_of(here).mirrored_at is not None, "mirrored")
        passed = link.passed
        link.rate = 300_000.0
        expect_within(120, lambda: link.passed > passed + 100_000, "in the middle of an upload")
    finally:
        running.kill()
        running.wait()
    link.cut()
    link.mend()
    link.rate = 0.0
    head = read_head(place_of(here))
    assert head is not None
    shutil.move(here.path, here.path.with_name("lost"))
    last = RunReader(here.path.with_name("lost")).ledger().last_step
    began = time.monotonic()
    play(there, last + 2, tokens, Resume.REQUIRED)
    assert time.monotonic() - began < 60, "the lease of the killed writer is 3 s"
    check_invariants(RunReader(there.path), last + 2)
    again = {row.episode for row in RunReader(there.path).episodes()}
    mirrored = _finished_in(there.path, head.sequence, here)
    assert mirrored <= again, "what the mirror had is not lost"


def _finished_in(path: Path, sequence: int, config: RunConfig) -> set[str]:
    """Return the episodes that had ended when the mirror was at most at this state."""
    events = (json.loads(line) for line in RunLayout(path).ledger.read_bytes().splitlines())
    found = set[str]()
    for event in events:
        if event["event"] == "rolled_back":
            break
        if event["event"] == "finished":
            found.add(event["episode"])
    return found


def test_a_killed_run_goes_on_in_its_own_directory_at_once(overrides_in: Overrides) -> None:
    """Its own claim needs no wait for the lease: the lock of the directory is free."""
    overrides = overrides_in("here", "mirror.lease_s=3600")
    config = recipe(overrides)
    program = [sys.executable, "-m", "tests.cluster.mirror.played_run", "100000", "5000"]
    running = subprocess.Popen([*program, *overrides], cwd=ROOT)
    try:
        expect_within(120, lambda: state_of(config).mirrored_at is not None, "mirrored")
    finally:
        running.kill()
        running.wait()
    last = RunReader(config.path).ledger().last_step
    play(config, last + 2, 12)
    check_invariants(RunReader(config.path), last + 2)
    assert state_of(config).state == "up to date"


def test_parts_of_an_unfinished_upload_and_cut_objects_count_for_nothing(
    server: S3Server, overrides_in: Overrides
) -> None:
    here, there = recipe(overrides_in("here")), recipe(overrides_in("there"))
    play(here, 4, 12)
    place = place_of(here)
    (key,) = (key for key in place.sizes(DATA) if "000004/rank-0" in key)
    root = f"{place.address.path}/{key}"
    stream = server.files.open_output_stream(f"{root}-never-closed")
    stream.write(b"x" * 12_000_000)  # parts of a multipart upload that nobody completes
    assert place.sizes(DATA).keys() == _listed(place), "which no listing shows"
    whole = place.read(key) or b""
    place.write(key, whole[:-1])
    with pytest.raises(Exception, match=r"is damaged: expected 1000 bytes .* found 999"):
        play(there, 6, 12)
    place.write(key, whole)
    stream.close()
    assert place.sizes(DATA).keys() != _listed(place)
    play(there, 6, 12)
    check_invariants(RunReader(there.path), 6)
    play(there, 7, 12)
    assert place.sizes(DATA).keys() == _listed(place), "what no head lists was removed"


def _listed(place: Place) -> set[str]:
    head = read_head(place)
    assert head is not None
    return head.keys()


def test_a_bucket_that_is_not_there_is_refused_at_the_start(
    overrides_in: Overrides, link: Link
) -> None:
    config = recipe([*overrides_in("here"), "mirror.url=s3://no-such-bucket/a"])
    with pytest.raises(InfraError, match=r"no-such-bucket/a/first did not .*check mirror\.url"):
        new_run(config)
    assert not config.path.exists()
    link.cut()
    with pytest.raises(InfraError, match=r"Whether there is a run to resume is not known"):
        new_run(recipe(overrides_in("here")))


def test_commands_read_a_mirror(
    overrides_in: Overrides, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", link.endpoint)
    monkeypatch.setenv("TRIALRUN_CACHE", str(tmp_path / "cache"))
    config = recipe(overrides_in("here"))
    address = f"{config.mirror.url}/first"

    def said(*words: str) -> Any:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if "--json" in words else done.stdout

    with new_run(config) as run:
        go_on(run, 4)
        run.layout.log.write_text("a line of the log\n")
        expect_within(120, lambda: state_of(config).state == "up to date", "mirrored")
        expect_within(120, lambda: "log.txt" in (_paths(config)), "the log too")
        status = said("status", address, "--json")
        assert (status["state"], status["step"]) == ("running", 4)
    assert said("logs", address, "--follow") == "a line of the log\n"
    status = said("status", address, "--json")
    assert (status["state"], status["run_dir"]) == ("stopped", address)
    assert status["checkpoint"] == f"{address}/checkpoints/000004"
    (row,) = said("runs", config.mirror.url, "--json")["runs"]
    assert (row["name"], row["step"]) == ("first", 4)
    assert len(said("episodes", address, "--json")) == 16
    assert said("episodes", address, "g000001.2", "--json")["lease"]["group"] == "g000001"
    assert Path(said("plot", address).strip()).stat().st_size > 1_000
    fetched = said("fetch", address, str(tmp_path / "fetched"), "--json")
    check_invariants(RunReader(Path(fetched["run_dir"])), 4)
    state = RunReader(Path(fetched["run_dir"])).ledger()
    assert all(entry.state is State.TRAINED for entry in state.entries.values())
    for words in (("stop", address), ("scale", address, "2")):
        with pytest.raises(ConfigError, match="can only be read"):
            CliRunner().invoke(app, words, catch_exceptions=False)


def _paths(config: RunConfig) -> set[str]:
    head = read_head(place_of(config))
    return set(head.by_path) if head else set()


def test_pyarrow_shows_an_object_only_when_it_is_complete(server: S3Server) -> None:
    """What the head's replacement relies on."""
    files = server.files
    stream = files.open_output_stream(f"{BUCKET}/atomic/large")
    stream.write(b"x" * 12_000_000)
    assert files.get_file_info(f"{BUCKET}/atomic/large").type == fs.FileType.NotFound
    stream.close()
    assert files.get_file_info(f"{BUCKET}/atomic/large").size == 12_000_000
