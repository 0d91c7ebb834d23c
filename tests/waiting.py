"""Waiting, with a deadline, for what only looking can tell."""

import time
from collections.abc import Callable

import psutil


def wait_until(holds: Callable[[], object], limit_s: float, every_s: float = 0.02) -> bool:
    """Return whether `holds`, looked at every `every_s`, became true within `limit_s`."""
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(every_s)
    return True


def expect_within(limit_s: float, holds: Callable[[], object], what: str = "") -> None:
    """Wait until `holds`; fails the test, with `what`, after `limit_s`."""
    assert wait_until(holds, limit_s), f"not within {limit_s:g} s: {what}"


def lives(process: psutil.Process) -> bool:
    """Whether `process`, and not another one of its number, still exists and is no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
