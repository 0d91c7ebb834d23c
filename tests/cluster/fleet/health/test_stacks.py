"""A process that is given up says what it waits for; one that cannot is not disturbed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.fleet.health.stacks import request_stacks
from tests.waiting import expect_within

_WAITS = """
import sys, time
from cluster.fleet.health.stacks import write_stacks_on_request
def waits_for_nothing():
    print("up", flush=True)
    time.sleep(60)
if sys.argv[1] == "says":
    write_stacks_on_request()
waits_for_nothing()
"""


@contextmanager
def waiting(how: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _WAITS, how], stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def test_a_process_writes_what_it_waits_for() -> None:
    with waiting("says") as process:
        assert process.stderr is not None
        request_stacks(process.pid)
        expect_within(10, lambda: "waits_for_nothing" in process.stderr.readline())  # pyright: ignore


def test_a_process_without_a_handler_is_left_alone() -> None:
    with waiting("is silent") as process:
        request_stacks(process.pid)
        request_stacks(2**22 + 1)  # nobody
        assert process.poll() is None
