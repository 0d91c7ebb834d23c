"""What a person reads while a command runs, by a clock that the test moves."""

import io
import logging
import os
from pathlib import Path

import pytest
from rich.console import Console

from cluster.progress import EVERY_S, Progress, duration
from envs.errors import StoreError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A progress that writes into memory."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.clock, self._out = Clock(), io.StringIO()
        console = Console(file=self._out, force_terminal=terminal, width=100, highlight=False)
        self.progress = Progress(console=console, clock=self.clock)

    def after(self, seconds: float) -> list[str]:
        """Return what was printed since the last time, `seconds` later."""
        self.clock.now += seconds
        self.progress.beat()
        lines = self._out.getvalue().splitlines()
        self._out.seek(0)
        self._out.truncate()
        return lines


@pytest.fixture
def watched() -> Watched:
    return Watched()


NAN = float("nan")
UPDATED = {"optimizer_steps": 1.0, "episodes": 64.0, "dropped": 0.0}
NOT_UPDATED = {
    **{"optimizer_steps": 0.0, "episodes": 64.0, "dropped": 64.0, "dropped_zero_variance": 64.0},
    **{"start_entropy": NAN, "grad_norm": NAN, "mismatch": NAN, "mismatch_fresh": NAN},
    **{"reward": 0.5, "trained_success": NAN, "replaced_groups": 3.0},
}


def test_an_sft_is_twenty_lines_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for step in range(1, 1001):
        progress.sft_step(
            {
                "step": float(step),
                "steps": 1000.0,
                "loss": 1 / step,
                "sequence_tokens_per_s": 7512.4,
            }
        )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0] == "step   50/1000  loss 0.020  tok/s 7,512"
    assert lines[-1].startswith("step 1000/1000  ")


def test_a_short_sft_is_a_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for step in range(1, 4):
        progress.sft_step({"step": float(step), "steps": 3.0, "loss": 0.5})
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == [
        "1/3",
        "2/3",
        "3/3",
    ]


def test_a_phase_is_a_line_and_repeats_while_nothing_else_is_printed(watched: Watched) -> None:
    watched.progress.phase("starting Ray")
    assert watched.after(0) == ["starting Ray"]
    assert watched.after(EVERY_S - 1) == []
    assert watched.after(1) == ["starting Ray: 30 s so far"]
    assert watched.after(29) == []
    assert watched.after(31) == ["starting Ray: 90 s so far"]


def test_a_counter_says_rate_and_time_left_and_also_that_nothing_moves(watched: Watched) -> None:
    with watched.progress.counter(400, "episodes") as counter:
        assert watched.after(EVERY_S) == ["episodes 0/400, 30 s so far"]
        counter.advance(120)
        assert watched.after(EVERY_S) == ["episodes 120/400, 2.0/s, about 2 min left"]
        assert watched.after(EVERY_S) == ["episodes 120/400, 1.3/s, about 4 min left"]
        counter.advance(280)
    assert watched.after(0) == ["episodes 400/400 in 90 s"]
    assert watched.after(2 * EVERY_S) == []


def test_a_resumed_counter_does_not_count_what_was_done_before(watched: Watched) -> None:
    with watched.progress.counter(100, "episodes", done=90) as counter:
        counter.advance()
        assert watched.after(EVERY_S) == ["episodes 91/100, 2.0/min, about 4 min left"]


def test_counters_at_once_each_have_their_name(watched: Watched) -> None:
    trial, direct = watched.progress.named("trial"), watched.progress.named("direct")
    with trial.counter(4, "episodes"), direct.counter(8, "episodes"):
        assert watched.after(EVERY_S) == [
            "trial: episodes 0/4, 30 s so far",
            "direct: episodes 0/8, 30 s so far",
        ]


def test_an_sft_between_two_lines_says_where_it_is(watched: Watched) -> None:
    watched.progress.phase("SFT")
    watched.progress.sft_step({"step": 1.0, "steps": 1000.0, "loss": 0.5})
    assert watched.after(EVERY_S) == ["SFT", "SFT, step 1/1000: 30 s so far"]


def test_a_terminal_has_a_bar_in_place_of_the_heartbeat() -> None:
    watched = Watched(terminal=True)
    with watched.progress.counter(4, "episodes") as counter:
        counter.advance()
        shown = "\n".join(watched.after(2 * EVERY_S))
    assert "so far" not in shown and "left" not in shown
    assert "episodes" in shown and "0/4" in shown


def test_nothing_is_printed_by_a_quiet_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True)
    progress.phase("starting")
    with progress.counter(1, "episodes") as counter:
        counter.advance()
    for _ in progress.track([1]):
        progress.step(1, 1, NOT_UPDATED)
    assert capsys.readouterr() == ("", "")


def test_a_step_says_its_time_and_the_time_left(watched: Watched) -> None:
    for step in watched.progress.track([1, 2, 3]):
        watched.clock.now += 20
        watched.progress.step(step, 3, UPDATED | {"step_s": 20.0, "workers": 2.0, "loss": 0.5})
    assert watched.after(0) == [
        "step 1/3  took 20.0s  workers 2  dropped 0/64  about 40 s left",
        "step 2/3  took 20.0s  workers 2  dropped 0/64  about 20 s left",
        "step 3/3  took 20.0s  workers 2  dropped 0/64",
    ]


def test_what_was_not_measured_is_not_zero(watched: Watched) -> None:
    shares = {"success": NAN, "zero_variance": NAN, "truncated": 0.25}
    watched.progress.step(7, 40, NOT_UPDATED | shares | {"sampled_tokens_per_s": NAN})
    line, warning = watched.after(0)
    assert line == (
        "step  7/40  success -  reward 0.50  trained on -  replaced 3  equal -  "
        "truncated 25%  entropy -  grad -  mismatch -  of it fresh -  sampled tok/s -  "
        "dropped 64/64 (zero_variance 64)"
    )
    assert warning.startswith("warning: step 7 trained nothing")


def test_a_run_that_trained_nothing_says_so_at_the_end(watched: Watched) -> None:
    for step in watched.progress.track([1, 2]):
        watched.progress.step(step, 2, NOT_UPDATED)
    last = watched.after(0)[-1]
    assert last.startswith("warning: nothing was trained: none of 2 steps updated the weights; ")
    assert "128 of 128 episodes were dropped" in last
    assert "trialrun sft" in last


def test_a_run_with_some_idle_steps_counts_them(watched: Watched) -> None:
    for step in watched.progress.track([1, 2]):
        watched.progress.step(step, 2, NOT_UPDATED if step == 1 else UPDATED)
    assert watched.after(0)[-1].startswith("warning: 1 of 2 steps trained nothing; 64 of 128")


def test_a_run_that_trained_has_no_warning(watched: Watched) -> None:
    for step in watched.progress.track([1, 2]):
        watched.progress.step(step, 2, UPDATED)
    assert not any("warning" in line for line in watched.after(0))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3_599, "1 h"), (4_800, "1 h 20 min")],
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_log_of_a_run_has_its_warnings(tmp_path: Path, watched: Watched) -> None:
    log, logger = tmp_path / "log.txt", logging.getLogger("trialrun")
    with watched.progress.logged(log):
        logger.warning("%s lost after %d s", "worker-1", 3)
        logger.info("nothing to see")
    logger.warning("after the end")
    (line,) = log.read_text().splitlines()
    assert line.endswith(" warning: worker-1 lost after 3 s")
    assert "warning: worker-1 lost after 3 s" in watched.after(0)


def test_the_log_of_a_run_begins_with_what_was_said_before_it(
    tmp_path: Path, watched: Watched
) -> None:
    """Whether a run continues, and from where, is known before its log is open."""
    watched.progress.say("the run continues from step 3")
    for name in ("one", "other"):
        with watched.progress.logged(tmp_path / name):
            watched.progress.say(f"in {name}")
    texts = {name: (tmp_path / name).read_text() for name in ("one", "other")}
    assert [line[20:] for line in texts["one"].splitlines()] == [
        "the run continues from step 3",
        "in one",
    ]
    assert [line[20:] for line in texts["other"].splitlines()] == ["in other"]


def test_a_full_disk_under_the_log_does_not_hide_the_error(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.progress.open_regular", os.open)  # the full disk is a device
    with (
        pytest.raises(StoreError, match="Make room"),
        watched.progress.logged(Path("/dev/full")),
    ):
        watched.progress.say("said")
        raise StoreError("Make room")
    assert "said" in watched.after(0)
