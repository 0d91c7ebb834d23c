"""Recorded traffic of earlier versions can still be read."""

import struct
import zlib
from pathlib import Path

import msgpack

from envs.server.traffic import TrafficReader
from envs.server.traffic_file import MAGIC, answer_of, answered_entry
from envs.server.wire import EncodedCall
from envs.tools import AnswerStatus, ToolAnswer, ToolSpec


def test_traffic_whose_sessions_have_no_episode_is_read(tmp_path: Path) -> None:
    payload = msgpack.packb([1, "old", "digest", 7, "trial", 12.5])
    assert payload is not None
    header = struct.pack(">II", len(payload), zlib.crc32(payload))
    (tmp_path / "000001.traffic").write_bytes(MAGIC + header + payload)
    [session] = TrafficReader(tmp_path).sessions
    assert (session.id, session.seed, session.opened_at) == ("old", 7, 12.5)
    assert session.episode == ""


def test_an_answer_keeps_the_tools_that_it_changed() -> None:
    tools = (ToolSpec(name="secret", description="Tells it.", parameters={"type": "object"}),)
    call = EncodedCall(name="login", arguments="{}")
    for changed in (None, tools, ()):
        answer = ToolAnswer(status=AnswerStatus.OK, text="in", seconds=0.5, tools=changed)
        entry = msgpack.unpackb(answered_entry("s", call, answer)[8:])
        assert answer_of(entry) == (call, answer)
