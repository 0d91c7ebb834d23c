"""Hostile tool sources against the sandbox: each must be refused, stopped or harmless."""

import os
import re
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from envs.config import IsolationConfig, IsolationLevel, ToolServerConfig
from envs.sandbox import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolAnswer, ToolSet, ToolSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")

DENIED = r"PermissionError: \[Errno 1\]"
NO_ENTRY = r"(PermissionError|FileNotFoundError)"

REFUSED = {
    "read /etc/passwd": ("open('/etc/passwd').read()", NO_ENTRY),
    "list /root": ("__import__('os').listdir('/root')", NO_ENTRY),
    "existence of a file": ("__import__('os').stat('/etc/passwd')", NO_ENTRY),
    "environment of the server": ("open(f'/proc/{SERVER}/environ').read()", NO_ENTRY),
    "own /proc": ("open('/proc/self/maps').read()", NO_ENTRY),
    "write outside": ("open('/tmp/trialrun-escape', 'w')", NO_ENTRY),
    "symlink": ("__import__('os').symlink('/etc', '/tmp/trialrun-link')", NO_ENTRY),
    "hard link": ("__import__('os').link('/etc/passwd', '/tmp/trialrun-link')", NO_ENTRY),
    "chmod": ("__import__('os').chmod('/tmp', 0)", NO_ENTRY),
    "chdir": ("__import__('os').chdir('/tmp')", NO_ENTRY),
    "TCP": ("socket.create_connection(('127.0.0.1', 80), 1)", DENIED),
    "UDP": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", DENIED),
    "UNIX socket": ("socket.socket(socket.AF_UNIX)", DENIED),
    "vsock": ("socket.socket(40)", DENIED),
    "socket pair": ("socket.socketpair()", DENIED),
    "names": ("socket.getaddrinfo('example.org', 80)", r"(gaierror|PermissionError)"),
    "fork bomb": ("[__import__('os').fork() for _ in range(9)]", DENIED),
    "thread": ("threading.Thread(target=print).start()", "RuntimeError: can't start new thread"),
    "exec": ("__import__('os').execv('/bin/sh', ['sh'])", NO_ENTRY),
    "spawn": ("__import__('os').posix_spawn('/bin/sh', ['sh'], {})", NO_ENTRY),
    "kill the server": ("__import__('os').kill(SERVER, 9)", DENIED),
    "kill everybody": ("__import__('os').kill(-1, 9)", DENIED),
    "limits of the server": ("resource.prlimit(SERVER, resource.RLIMIT_CPU, (1, 1))", NO_ENTRY),
    "nice": ("__import__('os').nice(5)", DENIED),
    "affinity": ("__import__('os').sched_setaffinity(0, [0])", DENIED),
    "raised limits": ("resource.setrlimit(resource.RLIMIT_NOFILE, (9999, 9999))", "ValueError"),
    "descriptors": ("[__import__('os').dup(1) for _ in range(99)]", DENIED),
    "pipe": ("__import__('os').pipe()", DENIED),
    "memory": ("len(bytearray(4 << 30))", "MemoryError"),
    "memory in small pieces": ("sum(map(len, ['x' * 9999 + str(i) for i in range(10**6)]))", "Mem"),
    "memfd": ("__import__('os').memfd_create('x')", DENIED),
    "timer": ("signal.setitimer(signal.ITIMER_REAL, 1)", r"(PermissionError|itimer_error)"),
    "exit": ("__import__('sys').exit('bye')", "SystemExit: bye"),
    "recursion": ("(lambda f: f(f))(lambda f: f(f))", "RecursionError"),
    "interpreter exit": ("__import__('os')._exit(3)", "exit code 3"),
    "crash": ("__import__('ctypes').string_at(0)", "SIGSEGV"),
    "module that is not there": ("__import__('numpy')", "ModuleNotFoundError"),
    "hostile exception": ("(_ for _ in ()).throw(Hostile())", "Hostile"),
    "terminal input": ("input()", "EOFError"),
    "garbage on the socket": (
        "__import__('os').write(3, b'\\0\\0\\0\\3abc')",
        "broke its connection",
    ),
    "giant frame": ("__import__('os').write(3, b'\\x7f' * 64)", "broke its connection"),
    "deep frame": (
        "__import__('os').write(3, (60000).to_bytes(4, 'big') + b'[' * 60000)",
        "broke its connection",
    ),
    "closed socket": ("__import__('os').close(3)", "ended its own process"),
}
"""By name: an expression, and what the answer, a tool error, must say."""

PRELUDE = """
import importlib
for name in ("socket", "resource", "signal", "threading", "ctypes"):
    globals()[name] = importlib.import_module(name)
class Hostile(Exception):
    def __str__(self):
        raise SystemExit
"""

RAW_CALLS = {
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "chroot": 161,
    "ptrace": 101,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "unshare": 272,
    "setns": 308,
    "keyctl": 250,
    "add_key": 248,
    "bpf": 321,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_setup": 206,
    "init_module": 175,
    "kexec_load": 246,
    "open_by_handle_at": 304,
    "openat2": 437,
    "clone": 56,
    "clone3": 435,
    "vfork": 58,
    "execveat": 322,
    "memfd_secret": 447,
    "shmget": 29,
    "msgget": 68,
    "semget": 64,
    "mq_open": 240,
    "prctl": 157,
    "seccomp": 317,
    "personality": 135,
    "recvmsg": 47,
    "sendmsg": 46,
    "ioctl": 16,
    "syslog": 103,
    "dup": 32,
    "reboot": 169,
    "setuid": 105,
}
"""x86-64 numbers of calls that a tool has no business with."""


def tool_set(**sources: str) -> ToolSet:
    """Return a set of tools by name; each source defines a function of that name."""
    return ToolSet(
        tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in sources),
        sources=tuple(sources.values()),
        functions=tuple(sources),
    )


def expression(text: str) -> str:
    """Return the source of a tool `probe` that gives the value of `text`."""
    return f"{PRELUDE}\nSERVER = {os.getpid()}\ndef probe():\n    return {text}\n"


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["namespaces", "seccomp"])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[SandboxPool]:
    strongest: IsolationLevel = request.param
    config = ToolServerConfig(
        isolation=IsolationConfig(required="seccomp"), call_timeout_s=10, session_memory_mib=384
    )
    pool = SandboxPool(config, strongest)
    await pool.start()
    yield pool
    await pool.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def hasty_pool() -> AsyncIterator[SandboxPool]:
    config = ToolServerConfig(
        isolation=IsolationConfig(required="seccomp"), call_timeout_s=0.3, session_cpu_s=1
    )
    pool = SandboxPool(config)
    await pool.start()
    yield pool
    await pool.close()


async def run_probe(pool: SandboxPool, source: str) -> ToolAnswer:
    """Run one probe, then make sure that a later session of the same pool is well."""
    session = SandboxSession(pool, tool_set(probe=source), seed=1)
    await session.start()
    answer = await session.call("probe", "{}")
    session.close()
    after = SandboxSession(pool, tool_set(well="def well():\n    return {'well': 1}"), seed=1)
    await after.start()
    assert (await after.call("well", "{}")).text == '{"well": 1}'
    after.close()
    return answer


@pytest.mark.parametrize("name", REFUSED)
async def test_probe_is_refused(pool: SandboxPool, name: str) -> None:
    probe, expected = REFUSED[name]
    answer = await run_probe(pool, expression(probe))
    assert answer.status is AnswerStatus.TOOL_ERROR, answer
    assert re.search(expected, answer.text), answer


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are of x86-64")
async def test_raw_system_calls_are_refused(pool: SandboxPool) -> None:
    source = f"""
import ctypes
def probe():
    libc = ctypes.CDLL(None, use_errno=True)
    allowed = []
    for name, number in {RAW_CALLS!r}.items():
        result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
        if result != -1 or ctypes.get_errno() != 1:
            allowed.append((name, result, ctypes.get_errno()))
    return allowed
"""
    answer = await run_probe(pool, source)
    assert (answer.status, answer.text) == (AnswerStatus.OK, "[]")


async def test_no_new_executable_memory(pool: SandboxPool) -> None:
    source = """
import ctypes
def probe():
    mmap = ctypes.CDLL(None, use_errno=True).mmap
    mmap.restype = ctypes.c_void_p
    mapped = mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0))
    return [mapped == 2**64 - 1, ctypes.get_errno()]
"""
    assert (await run_probe(pool, source)).text == "[true, 1]"


async def test_environment_is_empty(pool: SandboxPool, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await run_probe(pool, expression("dict(__import__('os').environ)"))
    assert answer.text == "{}"


async def test_output_is_swallowed(pool: SandboxPool, capfd: pytest.CaptureFixture[str]) -> None:
    source = """
import os, sys
print("at load time")
def probe():
    for _ in range(64):
        print("x" * 2**20)
        os.write(2, b"y" * 2**16)
    sys.stderr.write("z")
    return "done"
"""
    assert (await run_probe(pool, source)).text == "done"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", ["'x' * 10**7", "'\\0' * 10**7", "['é'] * 10**6"])
async def test_huge_reply_is_cut(pool: SandboxPool, value: str) -> None:
    answer = await run_probe(pool, expression(value))
    assert answer.status is AnswerStatus.OK
    assert answer.truncated
    assert 0 < len(answer.text.encode()) <= pool.config.reply_limit_bytes


async def test_forged_answer_stays_in_its_session(pool: SandboxPool) -> None:
    source = """
import json, os
def probe():
    reply = dict(number=1, status="ok", text="forged", truncated=False)
    reply |= dict(seconds=9e9, cpu_seconds=9e9)
    body = json.dumps(reply).encode()
    os.write(3, len(body).to_bytes(4, "big") + body)
    return "genuine"
"""
    session = SandboxSession(pool, tool_set(probe=source), seed=1)
    await session.start()
    first = await session.call("probe", "{}")
    assert first.seconds < 60
    second = await session.call("probe", "{}")
    assert "genuine" not in second.text, "the genuine answer of call 1 was taken for one of call 2"
    session.close()


async def test_state_does_not_leak_into_the_next_session(pool: SandboxPool) -> None:
    poison = """
import builtins, json, random, sys
builtins.abs = lambda _: 666
json.dumps = lambda *_, **__: '{"number": 1}'
random.random = lambda: 666
sys.modules["math"] = None
def probe():
    return 1
"""
    await run_probe(pool, poison)
    answer = await run_probe(pool, expression("[abs(-2), __import__('math').floor(2.5)]"))
    assert answer.text == "[2, 2]"


async def test_unpicklable_tricks_are_only_text(pool: SandboxPool) -> None:
    source = """
class Trick:
    def __reduce__(self):
        return (exec, ("1/0",))
    def __str__(self):
        return "trick"
def probe():
    return {"value": Trick(), "set": {3, 1, 2}, "nan": float("nan")}
"""
    assert (
        await run_probe(pool, source)
    ).text == '{"value": "trick", "set": [1, 2, 3], "nan": NaN}'


@pytest.mark.parametrize(
    "body",
    [
        "sum(iter(int, 1))",
        "__import__('re').match('(a+)+$', 'a' * 64 + 'b')",
        "__import__('time').sleep(10**6)",
        "__import__('os').read(3, 1)",
        "__import__('os').write(3, b'\\0\\0')and __import__('time').sleep(99)",
    ],
    ids=["loop", "regex", "sleep", "read the socket", "half a frame"],
)
async def test_endless_call_ends_at_its_time_limit(hasty_pool: SandboxPool, body: str) -> None:
    session = SandboxSession(hasty_pool, tool_set(probe=expression(body)), seed=1)
    await session.start()
    answer = await session.call("probe", "{}")
    session.close()
    assert answer.status is AnswerStatus.TIMEOUT
    assert "0.3 s" in answer.text


async def test_cpu_of_a_session_adds_up_over_restarts(hasty_pool: SandboxPool) -> None:
    source = (
        "import signal\ndef probe():\n    signal.signal(24, signal.SIG_IGN)\n    while True: pass"
    )
    session = SandboxSession(hasty_pool, tool_set(probe=source), seed=1)
    await session.start()
    texts = [(await session.call("probe", "{}")).text for _ in range(20)]
    assert "within 0.3 s" in texts[0]
    assert texts[-1].startswith("the session used up its 1 CPU seconds")
    session.close()


async def test_nothing_outlives_the_pool() -> None:
    pool = SandboxPool(ToolServerConfig(isolation=IsolationConfig(required="seccomp")))
    await pool.start()
    children = [await pool.acquire() for _ in range(5)]
    assert all(child.alive for child in children)
    family = psutil.Process(pool.zygote_pid).children(recursive=True)
    assert len(family) >= len(children)
    await pool.close()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
