"""Warnings of an actor's process reach the log of the driver, once."""

import logging

import pytest

from cluster.fleet.health.kept_warnings import KeptWarnings, say_for

logger = logging.getLogger("trialrun")


def test_warnings_are_kept_until_they_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    kept = KeptWarnings()
    try:
        logger.warning("tool server %s/%d lost", "worker-1", 0)
        logger.info("started")
        caplog.clear()
        say_for("worker-1", kept.take())
        assert caplog.messages == ["worker-1: tool server worker-1/0 lost"]
        kept.take()  # what this process said itself
        assert kept.take() == []
    finally:
        logger.removeHandler(kept)


def test_too_many_warnings_are_counted() -> None:
    kept = KeptWarnings()
    try:
        for number in range(130):
            logger.warning("loss %d", number)
        taken = kept.take()
        assert taken[0] == "30 earlier warnings are left out"
        assert (len(taken), taken[-1]) == (101, "loss 129")
        assert kept.take() == []
    finally:
        logger.removeHandler(kept)
