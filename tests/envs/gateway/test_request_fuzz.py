"""Hostile requests in each protocol: typed answers, bounded memory, other sessions go on."""

import asyncio
import os

import pytest

from tests.envs.gateway.request_fuzz import PROTOCOLS, fuzzed, server

REQUESTS = int(os.environ.get("TRIALRUN_FUZZ_REQUESTS", "60"))
MOST_MIB = 100


@pytest.mark.timeout(60 + REQUESTS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_request_breaks_a_server_or_its_other_sessions(protocol: str) -> None:
    with server() as (process, port):
        found = asyncio.run(fuzzed(protocol, REQUESTS, 1, process, port))
    assert not found.errors, found.errors[:5]
    assert found.grown_mib < MOST_MIB, found.line()
    assert found.during_s, "the other session was never served"
