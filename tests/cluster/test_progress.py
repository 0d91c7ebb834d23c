"""What a person reads of a run."""

import pytest

from cluster.progress import Progress


def test_an_sft_is_twenty_lines_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for step in range(1, 1001):
        progress.imitated(
            {"step": float(step), "steps": 1000.0, "loss": 1 / step, "tokens_per_s": 7512.4}
        )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0] == "step   50/1000  loss 0.020  tok/s 7,512"
    assert lines[-1].startswith("step 1000/1000  ")


def test_a_short_sft_is_a_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for step in range(1, 4):
        progress.imitated({"step": float(step), "steps": 3.0, "loss": 0.5})
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == [
        "1/3",
        "2/3",
        "3/3",
    ]
