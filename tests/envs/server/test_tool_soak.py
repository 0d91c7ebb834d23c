"""The soak, small: what a tool server opened is gone after the close."""

import pytest

from tests.benchmarks.bench_soak import Footprint, complaints, main


@pytest.mark.real
def test_nothing_is_left_of_many_sessions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sessions", "150", "--calls", "1000"]) == 0
    assert "nothing is left" in capsys.readouterr().out


def test_leaks_are_told() -> None:
    start = Footprint(processes=9, descriptors=50, memory_mib=50, all_memory_mib=60)
    end = Footprint(processes=10, descriptors=52, memory_mib=90, all_memory_mib=99)
    assert complaints(start, end, 100) == [
        "1 processes are left",
        "2 descriptors are left",
        "memory grew by 40.0 MiB",
    ]
    assert complaints(start, start, 100) == []
