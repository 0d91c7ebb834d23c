"""Record and replay: whole entries, torn ends, full disks, and answers that come back as given."""

import asyncio
import random
import resource
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.config import IsolationConfig, ToolServerConfig
from envs.endpoints import McpStdioEndpoint
from envs.errors import MissingError, StoreError, ToolServerError
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.server.replay_host import ReplayHost
from envs.server.session_host import SessionHost
from envs.server.tool_host import ToolHost
from envs.server.traffic import TrafficReader, TrafficRecorder
from envs.server.traffic_file import MAGIC, entries
from envs.server.wire import CallItem, EncodedCall, OpenItem, encode, encoded_call
from envs.services.recorded import RecordingTools
from envs.services.scripted import ScriptedTools
from envs.tools import AnswerStatus, SessionPurpose, ToolAnswer, ToolCall, ToolSet, ToolSpec

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ToolServerConfig(isolation=IsolationConfig(required="seccomp"), call_timeout_s=1)
UNSTEADY = """
import random, time
def dice(n=1):
    return [time.time(), random.random(), "\\ud800", [n] * 3]
def spin():
    while True: pass
"""
TOOLS = ToolSet(
    tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in ("dice", "spin")),
    sources=(UNSTEADY, UNSTEADY),
    functions=("dice", "spin"),
)


def item(seed: int = 1, purpose: SessionPurpose = "trial") -> OpenItem:
    return OpenItem(digest=TOOLS.digest, seed=seed, purpose=purpose)


def answer(text: str = "1") -> ToolAnswer:
    return ToolAnswer(status=AnswerStatus.OK, text=text, seconds=0.1, cpu_seconds=1e-17)


def record(
    folder: Path, *sessions: tuple[str, OpenItem, list[tuple[EncodedCall, ToolAnswer]]]
) -> Path:
    recorder = TrafficRecorder(folder)
    for name, opened, calls in sessions:
        recorder.opened(name, opened, TOOLS)
        for call, given_answer in calls:
            recorder.answered(name, call, given_answer)
        recorder.closed(name)
    recorder.close()
    return recorder.path


def call_of(arguments: str = "{}", name: str = "dice") -> EncodedCall:
    return EncodedCall(name=name, arguments=arguments)


async def replay(folder: Path) -> ReplayHost:
    host = ReplayHost(folder)
    await host.start()
    return host


async def calls(host: SessionHost, session: str, *asked: EncodedCall) -> tuple[ToolAnswer, ...]:
    result = await host.call(0, CallItem(session=session, calls=asked))
    assert result.error is None
    return result.answers


any_text = st.text(st.characters(), max_size=50)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(any_text, any_text, any_text, st.floats(allow_nan=False), st.booleans()),
        max_size=5,
    ),
    status=st.sampled_from(AnswerStatus),
)
def test_what_is_recorded_is_read_bit_for_bit(
    rows: list, status: AnswerStatus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = [
        (
            EncodedCall(name=name, arguments=arguments),
            ToolAnswer(status=status, text=text, seconds=seconds, cpu_seconds=0.5, truncated=cut),
        )
        for name, arguments, text, seconds, cut in rows
    ]
    folder = tmp_path_factory.mktemp("traffic")
    record(folder, ("s", item(seed=-(2**63), purpose="execution"), told))
    reader = TrafficReader(folder)
    [session] = reader.sessions
    assert (session.id, session.seed, session.purpose) == ("s", -(2**63), "execution")
    assert [reader.answer(session, i) for i in range(len(rows))] == told
    assert reader.tool_set(session.digest) == TOOLS
    reader.close()


def test_a_torn_end_is_cut_wherever_it_tears(tmp_path: Path) -> None:
    told = [(call_of(f'{{"n": {n}}}'), answer(str(n))) for n in range(3)]
    whole = record(tmp_path / "whole", ("s", item(), told)).read_bytes()
    ends = [offset for offset, _ in entries(tmp_path / "whole" / "000001.traffic")]
    torn = tmp_path / "torn" / "1.traffic"
    torn.parent.mkdir()
    for size in {*range(0, len(whole), 5), *ends, *(end - 1 for end in ends)}:
        torn.write_bytes(whole[:size])
        found = len(list(entries(torn)))
        assert found == sum(end <= size for end in [*ends[1:], len(whole)])
    damaged = bytearray(whole)
    damaged[ends[3] + 12] ^= 1
    torn.write_bytes(damaged)
    with pytest.raises(StoreError, match=f"entry at byte {ends[3]} is damaged, and others follow"):
        TrafficReader(torn.parent)


def test_servers_that_start_again_write_files_of_their_own(tmp_path: Path) -> None:
    first, second = (record(tmp_path, (name, item(), [])) for name in "ab")
    assert first != second
    assert [session.id for session in TrafficReader(tmp_path).sessions] == ["a", "b"]


def test_what_is_no_record_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"tools\.record = true"):
        TrafficReader(tmp_path)
    (tmp_path / "x.traffic").write_bytes(b"something else entirely")
    with pytest.raises(StoreError, match="expected a file of recorded tool traffic"):
        TrafficReader(tmp_path)
    (tmp_path / "x.traffic").write_bytes(MAGIC[:4])
    assert TrafficReader(tmp_path).sessions == []
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="could not create a file"):
        TrafficRecorder(tmp_path / "file")


def test_a_full_disk_is_one_error_and_never_the_callers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # writes beyond it fail: EFBIG
    try:
        recorder = TrafficRecorder(tmp_path)
        recorder.opened("s", item(), TOOLS)
        for _ in range(100):
            recorder.answered("s", call_of(), answer("x" * 1_000))
        recorder.close()
        recorder.answered("s", call_of(), answer())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert recorder.lost_events > 0
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert "Free disk space" in caplog.text and str(recorder.path) in caplog.text
    assert recorder.path.stat().st_size < 20_000
    list(entries(recorder.path))


def test_a_slow_disk_ends_the_recording_not_the_memory(tmp_path: Path) -> None:
    recorder = TrafficRecorder(tmp_path, queue_bytes=5_000)
    recorder.opened("s", item(), TOOLS)
    for _ in range(9):
        recorder.answered("s", call_of(), answer("x" * 1_000))
    assert "wait for a disk" in recorder.error
    recorder.close()
    assert recorder.lost_events > 0
    assert len(TrafficReader(tmp_path).sessions[0].answers) < 9


async def test_sessions_are_matched_by_key_and_order(tmp_path: Path) -> None:
    told = [(call_of(), answer(name)) for name in "abc"]
    record(
        tmp_path,
        ("a", item(1), told[:1]),
        ("b", item(1), told[1:2]),
        ("c", item(1, "execution"), told[2:]),
    )
    host = await replay(tmp_path)
    assert host.unknown_digests([item()]) == []
    opened = [(await host.open_session(one)).id for one in (item(1, "execution"), item(1), item(1))]
    assert opened == ["c", "a", "b"]
    texts = [(await calls(host, name, call_of()))[0].text for name in opened]
    assert texts == ["c", "a", "b"]
    used_up = (await host.open_session(item(1))).error
    assert used_up is not None and "none of the 2 recorded sessions" in used_up.message
    never = (await host.open_session(item(2))).error
    assert never is not None and "no such session was recorded" in never.message
    assert host.close(["a", "a", "x"]) == 1
    assert not host.knows("a")
    await host.stop()


async def test_sessions_of_one_seed_are_matched_by_episode(tmp_path: Path) -> None:
    def of(episode: str) -> OpenItem:
        return item().model_copy(update={"episode": episode})

    record(tmp_path, ("a", of("e1.0"), []), ("b", of("e2.0"), []), ("c", item(), []))
    assert [session.episode for session in TrafficReader(tmp_path).sessions] == ["e1.0", "e2.0", ""]
    host = await replay(tmp_path)
    opened = [(await host.open_session(of(name))).id for name in ("e2.0", "e3.0")]
    assert opened == ["b", "c"], "a session without an episode may belong to any"
    refused = (await host.open_session(of("e3.0"))).error
    assert refused is not None and "episode e3.0" in refused.message
    assert (await host.open_session(item())).id == "a", "clients need not name an episode"
    await host.stop()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (call_of('{"n": 3}'), 'recorded dice {"n": 2}, received dice {"n": 3}'),
        (call_of('{"n":2}'), 'recorded dice {"n": 2}, received dice {"n":2}'),
        (call_of('{"n": 2}', "spin"), 'recorded dice {"n": 2}, received spin {"n": 2}'),
    ],
)
async def test_a_difference_says_what_was_recorded_and_what_was_asked(
    asked: EncodedCall, words: str, tmp_path: Path
) -> None:
    first, second = call_of('{"n": 1}'), call_of('{"n": 2}')
    record(tmp_path, ("s", item(), [(first, answer("1")), (second, answer("2"))]))
    host = await replay(tmp_path)
    await host.open_session(item())
    answers = await calls(host, "s", first, asked, second)
    assert answers[0] == answer("1")
    assert [a.status for a in answers[1:]] == [AnswerStatus.INFRA_ERROR] * 2
    assert f"call 2 of the trial session s: {words}" in answers[1].text
    assert answers[1] == answers[2]
    await host.stop()


async def test_more_calls_than_recorded_are_a_difference(tmp_path: Path) -> None:
    record(tmp_path, ("s", item(), [(call_of(), answer())]))
    host = await replay(tmp_path)
    await host.open_session(item())
    answers = await calls(host, "s", call_of(), call_of())
    assert "recorded nothing after 1 calls" in answers[1].text
    await host.stop()


def test_sessions_can_be_copied_to_a_record_of_their_own(tmp_path: Path) -> None:
    told = [(call_of(), answer())]
    record(tmp_path / "all", *((name, item(seed), told) for seed, name in enumerate("abc")))
    reader = TrafficReader(tmp_path / "all")
    reader.copy(reader.sessions[2:], tmp_path / "some")
    copied = TrafficReader(tmp_path / "some")
    assert [session.id for session in copied.sessions] == ["c"]
    assert copied.answer(copied.sessions[0], 0) == told[0]
    assert copied.tool_set(TOOLS.digest) == TOOLS


async def test_tools_that_use_time_and_chance_are_replayed_bit_for_bit(tmp_path: Path) -> None:
    recorder = TrafficRecorder(tmp_path)
    host = ToolHost(CONFIG, observers=(recorder,))
    await host.start()
    host.add_tool_sets({TOOLS.digest: TOOLS})
    draw = random.Random(3)
    plan = [
        (item(seed % 2, "trial"), [call_of(f'{{"n": {draw.random()}}}') for _ in range(4)])
        for seed in range(6)
    ]
    plan[3][1].insert(2, call_of("{}", "spin"))
    plan[4][1].insert(2, call_of('{"wrong": 1}'))

    async def play(on: SessionHost) -> list[list[bytes]]:
        sessions = [(await on.open_session(opening)).id for opening, _ in plan]
        results = await asyncio.gather(
            *(
                on.call(i, CallItem(session=session, calls=tuple(asked)))
                for i, (session, (_, asked)) in enumerate(zip(sessions, plan, strict=True))
            )
        )
        on.close(sessions)
        return [[encode(one) for one in result.answers] for result in results]

    real = await play(host)
    await host.stop()
    recorder.close()
    flat = [text for texts in real for text in texts]
    assert len(set(flat)) == len(flat) == 26
    assert any(b"timeout" in text for text in flat) and any(b"tool_error" in text for text in flat)
    replayed = await replay(tmp_path)
    assert await play(replayed) == real
    await replayed.stop()


def test_a_killed_recorder_leaves_what_it_was_told(tmp_path: Path) -> None:
    script = (
        "import pathlib\n"
        "from envs.server.traffic import TrafficRecorder\n"
        "from envs.server.wire import OpenItem, EncodedCall\n"
        "from envs.tools import *\n"
        f"tools = ToolSet.model_validate_json({TOOLS.model_dump_json()!r})\n"
        f"recorder = TrafficRecorder(pathlib.Path({str(tmp_path)!r}))\n"
        "item = OpenItem(digest=tools.digest, seed=1, purpose='trial')\n"
        "recorder.opened('s', item, tools)\n"
        "call = EncodedCall(name='dice', arguments='{}')\n"
        "done = ToolAnswer(status='ok', text='x' * 300, seconds=0.1)\n"
        "for n in range(20_000): recorder.answered('s', call, done)\n"
        "while recorder.path.stat().st_size < 10**6: pass\n"
        "print('on', flush=True); input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"on\n"
    process.kill()
    process.communicate()
    [session] = TrafficReader(tmp_path).sessions
    assert len(session.answers) > 1_000


async def play(address: str, config: ToolServerConfig) -> list[list[ToolAnswer]]:
    """Some sessions on a server, several calls each; trial and execution have one seed."""
    client = ToolClient(address, config)
    asked = [ToolCall(name="dice", arguments={"n": n / 3}) for n in range(4)]
    try:
        sessions = [
            await client.open_session(TOOLS, seed, purpose)
            for seed in range(4)
            for purpose in ("trial", "execution")
        ]
        answers = await asyncio.gather(*(session.call(asked) for session in sessions))
        for session in sessions:
            await session.close()
        return answers
    finally:
        await client.close()


@pytest.mark.real
async def test_a_server_process_records_and_another_replays(tmp_path: Path) -> None:
    recording = CONFIG.model_copy(update={"record": True, "record_dir": str(tmp_path)})
    with ToolServerProcess(recording) as server:
        real = await play(server.address, CONFIG)
        transport = httpx.HTTPTransport(uds=server.address.removeprefix("unix:"))
        with httpx.Client(transport=transport, base_url="http://tools") as http:
            metrics = http.get("/metrics").text
    assert "trialrun_tool_traffic_lost_events_total 0.0" in metrics
    texts = [answer.text for answers in real for answer in answers]
    assert len(set(texts)) == len(texts) == 32
    with ToolServerProcess(CONFIG, replay=tmp_path) as server:
        assert await play(server.address, CONFIG) == real
        with pytest.raises(ToolServerError, match="none of the 1 recorded sessions like this"):
            await play(server.address, CONFIG)


def test_a_replay_without_a_record_says_how_to_record(tmp_path: Path) -> None:
    with pytest.raises(ToolServerError, match=r"record it first, with tools\.record = true"):
        ToolServerProcess(CONFIG, replay=tmp_path).start()


REMOTE = ToolSet(
    tools=(ToolSpec(name="ask", description="", parameters={}),),
    endpoint=McpStdioEndpoint(command=("server",), environment={"KEY": "secret-value"}),
)


async def test_tools_that_no_server_runs_are_recorded_by_their_client(tmp_path: Path) -> None:
    recording = CONFIG.model_copy(update={"record": True, "record_dir": str(tmp_path)})
    asked = [ToolCall(name="ask", arguments={"x": 1.5, "y": "ü"})] * 2
    tools = RecordingTools(ScriptedTools(lambda call, before: answer(str(len(before)))), recording)
    session = await tools.open_session(REMOTE, 3, "trial")
    real = await session.call(asked)
    await session.close()
    await (await tools.open_session(TOOLS, 3, "trial")).call(asked)  # its server's business
    await tools.close()
    assert b"secret-value" not in (tmp_path / "000001.traffic").read_bytes()
    host = await replay(tmp_path)
    host.add_tool_sets({REMOTE.digest: REMOTE})
    opened = await host.open_session(OpenItem(digest=REMOTE.digest, seed=3, purpose="trial"))
    assert await calls(host, opened.id, *map(encoded_call, asked)) == tuple(real)
    assert (await host.open_session(item(3))).error is not None
    await host.stop()


async def test_nothing_is_recorded_where_nobody_asks(tmp_path: Path) -> None:
    silent = CONFIG.model_copy(update={"record_dir": str(tmp_path)})
    tools = RecordingTools(ScriptedTools(lambda call, before: answer()), silent)
    await (await tools.open_session(REMOTE, 3, "trial")).call([ToolCall(name="ask", arguments={})])
    await tools.close()
    assert list(tmp_path.iterdir()) == []
