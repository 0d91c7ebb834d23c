"""Hostile requests at each door: typed answers, bounded memory, and a neighbour that goes on."""

import asyncio
import os

import pytest

from tests.envs.gateway.door_fuzz import DOORS, fuzzed, server

REQUESTS = int(os.environ.get("TRIALRUN_DOOR_REQUESTS", "60"))
MOST_MIB = 100


@pytest.mark.timeout(60 + REQUESTS)
@pytest.mark.parametrize("door", DOORS)
def test_no_request_breaks_a_server_or_its_other_sessions(door: str) -> None:
    with server() as (process, port):
        found = asyncio.run(fuzzed(door, REQUESTS, 1, process, port))
    assert not found.errors, found.errors[:5]
    assert found.grown_mib < MOST_MIB, found.line()
    assert found.during_s, "the other session was never served"
