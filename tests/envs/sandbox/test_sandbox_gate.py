"""The start-up gate, level `none`, and what is said where the sandbox cannot work."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from envs.config import IsolationConfig, IsolationLevel, ToolServerConfig
from envs.errors import IsolationError, SandboxError
from envs.sandbox import confine as sandbox_confine
from envs.sandbox.gate import check_gate
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec

ROOT = Path(__file__).resolve().parents[3]
UNSAFE = ToolServerConfig(isolation=IsolationConfig(required="none", unsafe=True))
START = """
import asyncio, sys
from envs.config import IsolationConfig, ToolServerConfig
from envs.errors import IsolationError
from envs.sandbox.session import SandboxPool

async def main():
    pool = SandboxPool(ToolServerConfig(isolation=IsolationConfig(required="seccomp")), "seccomp")
    try:
        await pool.start()
        print("started")
    except IsolationError as error:
        print(error)
    await pool.close()

asyncio.run(main())
"""


def tool(source: str) -> ToolSet:
    """Return a set of one tool, `probe`."""
    spec = ToolSpec(name="probe", description="", parameters={})
    return ToolSet(tools=(spec,), sources=(source,), functions=("probe",))


def start_in(folder: Path) -> str:
    """Return what a pool says that starts from the packages in `folder`."""
    ended = subprocess.run(
        [sys.executable, "-c", START], cwd=folder, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("name", "number", "probe"),
    [("openat", "257, 56", "read a file"), ("clone", "56, 220", "fork")],
)
def test_gate_refuses_a_filter_with_a_hole(
    tmp_path: Path, name: str, number: str, probe: str
) -> None:
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    rules = tmp_path / "envs" / "sandbox" / "syscalls.py"
    text = rules.read_text()
    hole = f'LEAF_RULES = {{\n    "{name}": Rule({number}),'
    rules.write_text(text.replace("LEAF_RULES = {", hole, 1))
    said = start_in(tmp_path)
    assert "expected every probe to be refused at level seccomp" in said
    assert probe in said


async def test_gate_names_all_that_an_unconfined_child_can_do() -> None:
    pool = SandboxPool(UNSAFE, "none")
    await pool.start()
    assert pool.report
    with pytest.raises(IsolationError) as refused:
        await check_gate(await pool.acquire(), pool.report.model_copy(update={"level": "seccomp"}))
    for probe in ("read a file", "socket", "exec", "kill", "executable memory"):
        assert f"{probe} (" in str(refused.value)
    assert "memory over the limit" not in str(refused.value), "limits hold at every level"
    await pool.close()


async def test_gate_tells_a_dead_child_from_a_hole() -> None:
    pool = SandboxPool(UNSAFE, "none")
    await pool.start()
    assert pool.report
    child = await pool.acquire()
    child.kill()
    with pytest.raises(SandboxError, match="self-test did not finish"):
        await check_gate(child, pool.report)
    await pool.close()


def test_level_none_needs_an_explicit_flag() -> None:
    with pytest.raises(ValidationError, match=r"expected tools\.isolation\.unsafe = true"):
        IsolationConfig(required="none")
    assert IsolationConfig(required="none", unsafe=True).required == "none"


async def test_level_none_still_forks_and_limits() -> None:
    pool = SandboxPool(UNSAFE, "none")
    await pool.start()
    assert pool.isolation.startswith("none/compute landlock=0")
    source = """
import os
def probe(what):
    return os.listdir("/proc/self/fd") if what == "files" else len(bytearray(2**30))
"""
    session = SandboxSession(pool, tool(source), seed=1)
    await session.start()
    assert (await session.call("probe", '{"what": "files"}')).status is AnswerStatus.OK
    assert (await session.call("probe", '{"what": "memory"}')).text == "MemoryError"
    await pool.close()


@pytest.mark.parametrize("required", ["seccomp", "landlock", "namespaces"])
async def test_level_none_is_not_enough_where_more_is_required(required: IsolationLevel) -> None:
    config = ToolServerConfig(isolation=IsolationConfig(required=required, unsafe=True))
    with pytest.raises(IsolationError, match=f"expected isolation {required}"):
        await SandboxPool(config, "none").start()


async def test_unsafe_servers_take_the_strongest_level_all_the_same() -> None:
    pool = SandboxPool(UNSAFE)
    await pool.start()
    assert pool.report
    assert pool.report.level != "none"
    await pool.close()


def test_other_platforms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(IsolationError, match="expected Linux on x86_64 or aarch64, found darwin"):
        sandbox_confine.check_platform()
    with pytest.raises(IsolationError, match="Linux container"):
        sandbox_confine.check_platform()


@pytest.mark.parametrize(
    ("call", "check", "expected"),
    [
        ("pidfd_open", "sandbox_confine.check_kernel()", "expected Linux 5.4 or later"),
        ("seccomp", "print(sandbox_confine.seccomp_refusal())", "Operation not permitted"),
    ],
)
def test_kernels_without_a_call_are_refused(call: str, check: str, expected: str) -> None:
    script = f"""
from envs.sandbox import confine as sandbox_confine
from envs.sandbox.syscalls import ZYGOTE_FILE_RULES
rules = {{name: rule for name, rule in ZYGOTE_FILE_RULES.items() if name != {call!r}}}
sandbox_confine.drop_privileges()
sandbox_confine.SyscallFilter(sandbox_confine.check_platform(), rules).install()
try:
    {check}
except sandbox_confine.IsolationError as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert expected in ended.stdout, ended.stderr
