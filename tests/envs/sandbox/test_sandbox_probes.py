"""Hostile tools against the sandbox, in every setting that this machine can give.

`python -m tests.benchmarks.bench_probes` tries all probes everywhere and prints the table.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from envs.config import IsolationConfig, SandboxProfile, ToolServerConfig
from envs.sandbox.pool import SandboxPool
from envs.sandbox.session import SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec
from tests.envs.sandbox.probes_gates import GATES, OWN_FILES
from tests.envs.sandbox.probes_kernel import ON_THE_MACHINE
from tests.envs.sandbox.probes_run import Sweep, chosen, run
from tests.envs.sandbox.probes_sessions import PROBES, SCRATCH, SESSIONS
from tests.envs.sandbox.probes_setting import SETTINGS
from tests.envs.sandbox.probes_stated import HARMLESS_ANYWAY, WEAKNESSES

BY_NAME = {setting.name: setting for setting in SETTINGS}
AGAINST_OTHERS = [
    probe.name for probe in (*ON_THE_MACHINE, *GATES, *SESSIONS, *SCRATCH, *OWN_FILES)
]
MATRIX: list[tuple[str, SandboxProfile, list[str]]] = [
    ("root", "compute", []),
    ("container user", "compute", []),
    ("user", "compute", AGAINST_OTHERS),
    ("container root", "compute", AGAINST_OTHERS),
    ("only landlock", "compute", AGAINST_OTHERS),
    ("only seccomp", "compute", AGAINST_OTHERS),
    ("root", "files+quota", AGAINST_OTHERS),
    ("container user", "files", AGAINST_OTHERS),
]
"""Setting, profile, and names of probes: none means all."""
IDS = [f"{setting}, {profile}" for setting, profile, _ in MATRIX]
_SHORT = ("user, compute", "container user, files")
"""The settings of `make test`; `make long` tries the others as well."""


@pytest.fixture(scope="module")
def sweeps(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Sweep]]]:
    """Those of the chosen tests, two at a time: half of a sweep is waiting for time limits."""
    wanted = {case for item in request.session.items if (case := _case(item)) is not None}
    with ThreadPoolExecutor(2) as threads:
        yield {
            key: threads.submit(run, BY_NAME[setting], profile, names)
            for case, (key, (setting, profile, names)) in enumerate(zip(IDS, MATRIX, strict=True))
            if case in wanted
        }


def _case(item: pytest.Item) -> int | None:
    call = getattr(item, "callspec", None)
    return call.params.get("case") if call and item.path == Path(__file__) else None


def check(sweep: Sweep, expected: int) -> None:
    """Fail unless each probe was tried and did what is stated for it, no more and no less."""
    if sweep.refusal:
        pytest.skip(sweep.refusal)
    findings = {finding.probe: finding for finding in sweep.findings}
    assert len(findings) == len(sweep.findings) == expected
    wrong = [finding for finding in sweep.findings if finding.verdict in ("open", "broken")]
    assert not wrong, wrong
    assert sweep.level == BY_NAME[sweep.setting].level
    stated = WEAKNESSES[BY_NAME[sweep.setting].level, sweep.profile].keys() & findings.keys()
    assert sweep.names("weak") == stated, [findings[name] for name in sweep.names("weak") ^ stated]


def test_the_catalogue_is_large_and_its_names_are_unique() -> None:
    assert len({probe.name for probe in PROBES}) == len(PROBES) >= 150
    assert len({probe.family for probe in PROBES}) >= 15


def test_quick_probes_at_the_default_level() -> None:
    names = [probe.name for probe in ON_THE_MACHINE]
    setting = BY_NAME["root"] if not BY_NAME["root"].refusal else BY_NAME["user"]
    check(run(setting, "compute", names), len(chosen(setting, "compute", names)))


@pytest.mark.real
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in _SHORT else pytest.mark.long)
        for case, name in enumerate(IDS)
    ],
)
def test_all_is_contained_but_what_is_stated(sweeps: dict[str, Future[Sweep]], case: int) -> None:
    setting, profile, names = MATRIX[case]
    check(sweeps[IDS[case]].result(), len(chosen(BY_NAME[setting], profile, names)))


@pytest.mark.real
def test_the_probes_do_harm_where_nothing_holds_them() -> None:
    names = [probe.name for probe in ON_THE_MACHINE if probe.name not in HARMLESS_ANYWAY]
    sweep = run(BY_NAME["none"], "compute", names)
    assert len(sweep.findings) > 25
    assert not sweep.names("contained") | sweep.names("broken"), sweep.names("contained")


def tool_set(**sources: str) -> ToolSet:
    """Return a set of tools by name; each source defines a function of that name."""
    return ToolSet(
        tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in sources),
        sources=tuple(sources.values()),
        functions=tuple(sources),
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[SandboxPool]:
    isolation = IsolationConfig(required="seccomp")
    pool = SandboxPool(ToolServerConfig(isolation=isolation, call_timeout_s=5, session_cpu_s=1))
    await pool.start()
    yield pool
    await pool.close()


async def opened(pool: SandboxPool, source: str) -> SandboxSession:
    session = SandboxSession(pool, tool_set(probe=source), seed=1)
    await session.start()
    return session


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("probe()", "RecursionError"),
        ("import os; os._exit(3)", "exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import numpy", "ModuleNotFoundError"),
        ("input()", "EOFError"),
        ("import os; os.write(3, bytes(9))", "broke its connection"),
        ("import os; os.close(3)", "ended its own process"),
        ("open('/etc/passwd')", "(PermissionError|FileNotFoundError)"),
    ],
)
async def test_the_answer_says_how_a_tool_failed(
    pool: SandboxPool, body: str, expected: str
) -> None:
    session = await opened(pool, f"def probe():\n    {body}")
    answer = await session.call("probe", "{}")
    session.close()
    assert answer.status is AnswerStatus.TOOL_ERROR, answer
    assert re.search(expected, answer.text), answer


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("value", ["'x' * 10**7", "'\\0' * 10**7", "['é'] * 10**6"])
async def test_a_huge_reply_is_cut(pool: SandboxPool, value: str) -> None:
    session = await opened(pool, f"def probe():\n    return {value}")
    answer = await session.call("probe", "{}")
    session.close()
    assert answer.status is AnswerStatus.OK
    assert answer.truncated
    assert 0 < len(answer.text.encode()) <= pool.config.reply_limit_bytes


@pytest.mark.asyncio(loop_scope="module")
async def test_a_forged_answer_does_not_answer_the_next_call(pool: SandboxPool) -> None:
    source = """
import os, struct
def probe():
    times = 2**64 - 1, 2**64 - 1
    os.write(3, struct.pack(">IIBBQQ", 6, 1, 0, 0, *times) + b"forged")
    return "genuine"
"""
    session = await opened(pool, source)
    first = await session.call("probe", "{}")
    assert first.seconds < 60
    second = await session.call("probe", "{}")
    assert "genuine" not in second.text, "the genuine answer of call 1 was taken for one of call 2"
    session.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_cpu_of_a_session_adds_up_over_restarts(pool: SandboxPool) -> None:
    source = (
        "import signal\ndef probe():\n    signal.signal(24, signal.SIG_IGN)\n    while True: pass"
    )
    session = await opened(pool, source)
    text = ""
    # On a busy machine a call computes little before its wall-time limit: then it takes more calls.
    async with asyncio.timeout(100):
        while not text.startswith("the session used up its 1 CPU seconds"):
            text = (await session.call("probe", "{}")).text
            assert text.startswith(("no answer within 5 s", "the session used up"))
    assert (await session.call("probe", "{}")).seconds == 0
    session.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_other_seeds_draw_other_numbers(pool: SandboxPool) -> None:
    drawn = []
    for seed in (1, 2, 1):
        source = "import random\ndef probe():\n    return random.getrandbits(48)"
        session = SandboxSession(pool, tool_set(probe=source), seed)
        await session.start()
        drawn.append((await session.call("probe", "{}")).text)
        session.close()
    assert drawn[0] == drawn[2] != drawn[1]


async def test_nothing_outlives_the_pool() -> None:
    pool = SandboxPool(ToolServerConfig(isolation=IsolationConfig(required="seccomp")))
    await pool.start()
    children = [await pool.acquire() for _ in range(5)]
    assert all(child.alive for child in children)
    family = psutil.Process(pool.zygote_pid).children(recursive=True)
    assert len(family) >= len(children)
    await pool.close()
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=5)
    assert not alive
