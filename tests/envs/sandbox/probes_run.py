"""Runs hostile tools in one setting and says what came of each.

    python -m tests.envs.sandbox.probes_run SETTING PROFILE [NAME ...]

prints one JSON object, a `Sweep`. `run` does it in processes of its own and returns the sweep.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel

from envs.config import IsolationConfig, SandboxProfile, ToolServerConfig
from envs.sandbox.pool import SandboxPool
from envs.sandbox.session import SandboxSession
from envs.tools import AnswerStatus, ToolAnswer, ToolSet, ToolSpec
from tests.envs.sandbox.probes import Probe
from tests.envs.sandbox.probes_sessions import PROBES
from tests.envs.sandbox.probes_setting import SETTINGS, Setting, enter
from tests.envs.sandbox.probes_world import World

Verdict = Literal["contained", "weak", "open", "broken"]
_ROOT = Path(__file__).resolve().parents[3]
_SCRATCH_MIB = 4
_AT_ONCE = 12
_SETTLE_S, _SETTLE_UNCONFINED_S = 30.0, 5.0
"""Longest wait for processes to end: long, as a loaded machine ends them late; short for the level
`none`, where probes leave some on purpose.
"""
_STEADY_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36
_MISTAKES = (
    *("NameError", "UnboundLocalError", "TypeError", "AttributeError", "SyntaxError", "KeyError"),
    *("AssertionError", "ModuleNotFoundError"),
)
_NEIGHBOUR = """
import os, random
kept = []
def remember(secret):
    kept.append(secret)
    if FILES:
        with open("diary", "w") as file:
            file.write(secret)
    return [os.getcwd() if FILES else "", random.getrandbits(48)]
def recall():
    kept.append(None)
    return [len(kept), not FILES or open("diary").read() == kept[0]]
"""
_WELL = """
import builtins, decimal, gc, json, locale, math, os, random, resource, signal, sys, time, warnings
def well():
    return repr([
        abs(-2), math.floor(2.5), json.dumps({"a": 1}), random.getrandbits(64), hash("x"),
        sorted(vars(builtins)), sorted(sys.modules), sys.path, dict(os.environ), time.tzname,
        time.process_time() < 2, locale.setlocale(locale.LC_ALL), decimal.getcontext().prec,
        sys.getrecursionlimit(), gc.isenabled(), gc.get_threshold(), warnings.filters,
        [signal.getsignal(n) for n in range(1, 32)], sys.gettrace(), sys.getprofile(),
        [resource.getrlimit(n) for n in range(16)], os.getuid(), FILES and os.listdir("."),
    ]).replace(os.getcwd() if FILES else "/nowhere", "SCRATCH")
"""


class Finding(BaseModel):
    """What came of one probe. `evidence`: what was seen from outside, then what it claimed."""

    probe: str
    family: str
    verdict: Verdict
    evidence: list[str] = []
    answer: str = ""
    seconds: float = 0.0


class Sweep(BaseModel):
    """What came of the probes in one setting; `isolation` is the server's own summary."""

    setting: str
    profile: SandboxProfile
    isolation: str = ""
    level: str = ""
    refusal: str = ""
    findings: list[Finding] = []

    def names(self, verdict: Verdict) -> set[str]:
        """Return the names of the probes with that verdict."""
        return {finding.probe for finding in self.findings if finding.verdict == verdict}


def chosen(setting: Setting, profile: SandboxProfile, names: Sequence[str] = ()) -> list[Probe]:
    """Return the probes that make sense there, those of `names` if any are given."""
    return [
        probe
        for probe in PROBES
        if profile in probe.profiles
        and (not names or probe.name in names)
        and probe.machine in ("", os.uname().machine)
        and (probe.bare or setting.level != "none")
    ]


def run(setting: Setting, profile: SandboxProfile, names: Sequence[str] = ()) -> Sweep:
    """Try the probes in a process of their own."""
    if refusal := setting.refusal:
        return Sweep(setting=setting.name, profile=profile, refusal=refusal)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.envs.sandbox.probes_run", setting.name, profile, *names],
        cwd=_ROOT,
        capture_output=True,
        timeout=200,
        check=False,
    )
    if ended.returncode:
        told = ended.stderr.decode()[-2000:]
        raise RuntimeError(f"{setting.name}, {profile}: code {ended.returncode}: {told}")
    return Sweep.model_validate_json(ended.stdout)


def _tools(source: str, *functions: str) -> ToolSet:
    return ToolSet(
        tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in functions),
        sources=(source,) * len(functions),
        functions=functions,
    )


class _Sweeper:
    """A pool under attack, with a well-behaved session that stays and others that come after."""

    def __init__(self, setting: Setting, profile: SandboxProfile, world: World) -> None:
        self._files = f"FILES = {profile != 'compute'}\n"
        self._world = world
        self._level = setting.level
        self._settle_s = _SETTLE_UNCONFINED_S if setting.level == "none" else _SETTLE_S
        isolation = IsolationConfig(
            required=setting.level,
            profile=profile,
            scratch_mib=_SCRATCH_MIB,
            unsafe=setting.level == "none",
        )
        config = ToolServerConfig(isolation=isolation, call_timeout_s=1.0, session_memory_mib=320)
        self._pool = SandboxPool(config, setting.strongest)
        self._names: dict[str, object] = {}
        self._turn = 0
        self._normal = (0, 0, 0)
        self._well = ""
        self._zygote: int | None = None

    async def sweep(self, probes: Sequence[Probe]) -> tuple[list[Finding], str, str]:
        """Try `probes`; return what came of them, the summary and the level."""
        await self._pool.start()
        try:
            await self._settle_in()
            quick = [probe for probe in probes if not probe.endless]
            endless = [probe for probe in probes if probe.endless]
            findings = [await self._try([probe]) for probe in quick]
            groups = [endless[i : i + _AT_ONCE] for i in range(0, len(endless), _AT_ONCE)]
            findings += [await self._try(group) for group in groups]
            report = self._pool.report
            level = report.level if report else ""
            return [one for some in findings for one in some], self._pool.isolation, level
        finally:
            await self._pool.close()

    async def _settle_in(self) -> None:
        """Leave secrets where a probe could find them, and note what normal looks like."""
        source = self._files + _NEIGHBOUR
        secret = json.dumps({"secret": self._world.secrets["session"]})
        for seed in range(3):  # sessions that came and went
            earlier = await self._session(_tools(source, "remember"), seed)
            await earlier.call("remember", secret)
            earlier.close()
        self._neighbour = await self._session(_tools(source, "remember", "recall"), 2**40 + 7)
        answer = await self._neighbour.call("remember", secret)
        scratch, drew = json.loads(answer.text)
        self._names = {
            "NEIGHBOUR_DREW": drew,
            "NEIGHBOUR_SCRATCH": scratch,
            "SCRATCH_BYTES": _SCRATCH_MIB * 2**20,
            "ZYGOTE": self._pool.zygote_pid,
        }
        self._well = await self._fingerprint()
        self._zygote = self._pool.zygote_pid
        await self._until_steady()

    async def _try(self, probes: Sequence[Probe]) -> list[Finding]:
        """Try `probes` at once; harm that one of them did is laid at the door of all."""
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(self._answer(probe) for probe in probes))
        harm = await self._harm()
        findings = []
        for probe, (answer, faults) in zip(probes, answers, strict=True):
            claims = _claims(answer)
            evidence = [*faults, *harm]
            verdict: Verdict = "contained"
            if evidence:
                verdict = "open"
            elif claims:
                verdict = "weak" if probe.minor else "open"
            elif not self._as_meant(probe, answer):
                verdict = "broken"
            findings.append(
                Finding(
                    probe=probe.name,
                    family=probe.family,
                    verdict=verdict,
                    evidence=[*evidence, *claims][:9],
                    answer=f"{answer.status}: {answer.text}"[:200],
                    seconds=asyncio.get_running_loop().time() - began,
                )
            )
        return findings

    def _as_meant(self, probe: Probe, answer: ToolAnswer) -> bool:
        """Whether the probe did what it is there for, rather than stumble."""
        if probe.answer and re.search(probe.answer, answer.text):
            return True
        if probe.answer and self._level != "none":
            return False
        return answer.status is not AnswerStatus.TOOL_ERROR or not _mistaken(answer.text)

    async def _answer(self, probe: Probe) -> tuple[ToolAnswer, list[str]]:
        self._turn += 1
        names = self._world.names() | self._names | {"MALFORMED": self._turn}
        session = await self._session(_tools(probe.source(names), "probe"), seed=1)
        began = asyncio.get_running_loop().time()
        answer = await session.call("probe", "{}")
        elapsed = asyncio.get_running_loop().time() - began
        session.close()
        faults = [f"secret of the {name} told" for name in self._world.leaked(answer.text)]
        if answer.status is AnswerStatus.INFRA_ERROR:
            faults.append("blamed on the infrastructure")
        if max(answer.seconds, answer.cpu_seconds) > elapsed + 0.1:
            faults.append("false times")
        if len(answer.text.encode()) > self._pool.config.reply_limit_bytes:
            faults.append("answer over the limit")
        return answer, faults

    async def _harm(self) -> list[str]:
        harm = await self._until_settled()
        answer = await self._neighbour.call("recall", "{}")
        if answer.status is not AnswerStatus.OK or not json.loads(answer.text)[1]:
            harm.append(f"the neighbour is not well: {answer.text[:80]}")
        if await self._fingerprint() != self._well:
            harm.append("a later session is not as new")
        if self._pool.zygote_pid != self._zygote:
            harm.append("the fork server had to be replaced")
            self._zygote = self._pool.zygote_pid
        await self._until_settled()
        return [*harm, *self._world.harm()]

    async def _fingerprint(self) -> str:
        session = await self._session(_tools(self._files + _WELL, "well"), seed=1)
        answer = await session.call("well", "{}")
        session.close()
        return answer.text

    async def _session(self, tools: ToolSet, seed: int) -> SandboxSession:
        session = SandboxSession(self._pool, tools, seed)
        await session.start()
        return session

    async def _until_steady(self) -> None:
        """Count processes, descriptors and folders once they do not change any more.

        A count while the pool waits for forks, or while a closed session's child is still ending,
        would make every later count differ from the normal one.
        """
        now = asyncio.get_running_loop().time
        deadline, since, last = now() + self._settle_s, now(), self._count()
        while now() < since + _STEADY_S:
            await asyncio.sleep(0.05)
            count = self._count()
            if count != last or self._pool.forks_pending:
                since, last = now(), count
            if now() > deadline:
                raise RuntimeError(f"processes and descriptors keep changing: {last}")
        self._normal = last
        self._world.settle()

    async def _until_settled(self) -> list[str]:
        """Wait until there are as many processes, descriptors and folders as at the start."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settle_s
        last = self._count()
        while loop.time() < deadline:
            last = self._count()
            if last == self._normal:
                return []
            await asyncio.sleep(0.005)
        names = ("processes", "descriptors", "scratch folders")
        extra = [after - before for before, after in zip(self._normal, last, strict=True)]
        self._normal = last
        return [f"{more:+} {name}" for name, more in zip(names, extra, strict=True) if more]

    def _count(self) -> tuple[int, int, int]:
        """Return processes, descriptors and scratch folders, without those of idle children."""
        idle = self._pool.idle
        scratches = self._scratches()
        return (
            _processes() - idle,
            len(os.listdir("/proc/self/fd")) - 2 * idle,
            scratches - idle if scratches else 0,
        )

    def _scratches(self) -> int:
        """Return the number of scratch folders that can be seen from outside."""
        scratch = str(self._names.get("NEIGHBOUR_SCRATCH", ""))
        return len(os.listdir(os.path.dirname(scratch))) if os.path.isdir(scratch) else 0


def _processes() -> int:
    count = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            count += process.status() != psutil.STATUS_ZOMBIE
    return count


def _claims(answer: ToolAnswer) -> list[str]:
    if answer.status is not AnswerStatus.OK:
        return []
    try:
        value = json.loads(answer.text)
    except (ValueError, RecursionError):  # no claim, but an answer that is to break its reader
        return []
    strings = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if strings else []


def _mistaken(text: str) -> bool:
    return text.startswith(_MISTAKES) or "could not be loaded" in text


def main(setting_name: str, profile: SandboxProfile, *names: str) -> None:
    """Enter the setting, start over inside it, try the probes and print the sweep."""
    setting = next(setting for setting in SETTINGS if setting.name == setting_name)
    if os.environ.pop("TRIALRUN_PROBE_SETTING", "") != setting_name:
        enter(setting)
        environment = os.environ | {"TRIALRUN_PROBE_SETTING": setting_name}
        module = "tests.envs.sandbox.probes_run"
        command = [sys.executable, "-m", module, setting_name, profile, *names]
        os.execve(sys.executable, command, environment)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)
    stdout, stderr = os.dup(1), os.dup(2)
    os.set_inheritable(stdout, False)
    world: World | None = None
    try:
        world = World()
        sweeper = _Sweeper(setting, profile, world)
        findings, summary, level = asyncio.run(sweeper.sweep(chosen(setting, profile, names)))
        sweep = Sweep(
            setting=setting_name,
            profile=profile,
            isolation=summary,
            level=level,
            findings=findings,
        )
        os.write(stdout, sweep.model_dump_json().encode())
    except BaseException:
        os.dup2(stderr, 2)
        raise
    finally:
        if world:
            world.close()


if __name__ == "__main__":
    main(sys.argv[1], *sys.argv[2:])  # pyright: ignore[reportArgumentType]
