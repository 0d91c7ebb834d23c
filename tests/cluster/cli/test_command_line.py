"""Ctrl-C while modules of others are imported."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from cluster.cli.command_line import interruptible


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    """SIGINT as on a terminal: tests in the background of a shell inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interruption_that_a_library_swallowed_is_raised_at_the_end() -> None:
    before = signal.getsignal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), interruptible():
        with suppress(KeyboardInterrupt):
            press()
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interruption_that_is_not_swallowed_ends_the_block() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), interruptible():
        press()
        reached = True
    assert not reached


def test_an_ignored_interruption_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        press()


def test_without_an_interruption_nothing_is_raised() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        pass
    assert signal.getsignal(signal.SIGINT) is before
