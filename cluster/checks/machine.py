"""What this machine has: processors, memory, disks, GPUs, kernel features, free ports."""

import ctypes
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from envs.errors import IsolationError
from envs.sandbox.confine import check_platform, landlock_version

GIB = 2**30
_NO_LIMIT = 2**60
_PR_GET_SECCOMP = 21
_LIBRARIES = ("libnuma.so.1",)
"""Libraries that no package of Python brings: vLLM's CPU build loads them when an engine starts."""
_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU as the driver reports it."""

    name: str
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Kernel:
    """Kernel features for the sandbox; `namespaces_refusal` is empty if namespaces work."""

    release: str
    platform_refusal: str
    seccomp: bool
    landlock: int
    namespaces_refusal: str
    filtered: bool = False
    """A seccomp filter is in force already, as in a container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Facts about the machine. Sizes in GiB; `taken_ports` are ports that are in use."""

    python: tuple[int, int, int]
    cpus: int
    memory_gib: float
    free_memory_gib: float
    free_disk_gib: float
    shared_memory_gib: float
    open_files: int
    open_files_limit: int
    gpus: tuple[Gpu, ...]
    gpu_refusal: str
    kernel: Kernel
    taken_ports: tuple[int, ...]
    missing_libraries: tuple[str, ...] = ()
    """Libraries of the system that `_LIBRARIES` names and the loader does not find."""


def read_machine(folder: Path, ports: Sequence[int]) -> Machine:
    """Examine this machine; `folder` is where runs are written."""
    memory = psutil.virtual_memory()
    limit = memory_limit(Path("/sys/fs/cgroup"))
    gpus, gpu_refusal = _gpus()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        cpus=len(os.sched_getaffinity(0)),
        memory_gib=min(memory.total, limit) / GIB,
        free_memory_gib=min(memory.available, limit) / GIB,
        free_disk_gib=shutil.disk_usage(folder).free / GIB,
        shared_memory_gib=_free_gib(Path("/dev/shm")),
        open_files=soft,
        open_files_limit=hard,
        gpus=gpus,
        gpu_refusal=gpu_refusal,
        kernel=_kernel(),
        taken_ports=tuple(port for port in ports if _is_taken(port)),
        missing_libraries=tuple(name for name in _LIBRARIES if not _is_found(name)),
    )


def memory_limit(cgroup: Path) -> int:
    """Return the memory limit of this container in bytes (cgroup 2 or 1), huge without one."""
    for name in _CGROUP_LIMITS:
        try:
            text = (cgroup / name).read_text().strip()
        except OSError:
            continue
        return min(int(text), _NO_LIMIT) if text.isdigit() else _NO_LIMIT
    return _NO_LIMIT


def parse_gpus(table: str) -> tuple[Gpu, ...]:
    """Read `nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits` (MiB)."""
    rows = (line.rpartition(",") for line in table.splitlines() if "," in line)
    return tuple(
        Gpu(name=name.strip(), memory_gib=float(mib) / 1024 if mib.strip().isdigit() else 0.0)
        for name, _, mib in rows
    )


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs, and the reason if a device exists that cannot be queried."""
    device = Path("/dev/nvidia0").exists()
    command = shutil.which("nvidia-smi")
    if command is None:
        return (), "/dev/nvidia0 is there, nvidia-smi is not" if device else ""
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    if shown.returncode != 0:
        return (), (shown.stdout + shown.stderr).strip() if device else ""
    return parse_gpus(shown.stdout), ""


def _kernel() -> Kernel:
    release = platform.release()
    try:
        check_platform()
    except IsolationError as error:
        return Kernel(release, str(error), seccomp=False, landlock=0, namespaces_refusal=str(error))
    # -1 with EINVAL where the kernel was built without seccomp, 2 under a filter.
    mode = ctypes.CDLL(None).prctl(_PR_GET_SECCOMP, 0, 0, 0, 0)
    refusal = _namespaces_refusal()
    return Kernel(release, "", mode >= 0, landlock_version(), refusal, filtered=mode > 0)


def _namespaces_refusal() -> str:
    """Try namespaces in a new interpreter: this process may have threads and must not fork."""
    code = "from envs.sandbox.confine import namespaces_refusal as f; print(f())"
    root = Path(__file__).resolve().parents[2]
    tried = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return tried.stdout.strip() if tried.returncode == 0 else tried.stderr.strip()[-200:]


def _free_gib(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free / GIB
    except OSError:
        return 0.0


def _is_found(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _is_taken(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
