"""Derives a zygote's options from a server's config, and the report from its answer."""

import importlib.util
import platform
from collections.abc import Sequence
from pathlib import Path

from envs.config import IsolationLevel, ToolServerConfig
from envs.errors import ConfigError
from envs.sandbox.isolation import IsolationReport, SessionLimits
from envs.sandbox.options import ZygoteOptions

IDLE_CHILDREN = 8
"""Forked children that wait for a session on a quiet server."""
MOST_IDLE_CHILDREN = 64
"""Forked children that wait while many sessions are opened."""
MOST_SLOTS = 4_096
_HASH_SEED = 0
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
ENVIRONMENT = {
    "PYTHONHASHSEED": str(_HASH_SEED),
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    **dict.fromkeys(_ONE_THREAD, "1"),
}
"""Environment of the zygote while it starts; sessions have none.

Libraries get one thread, because a process with threads could not be forked.
"""
_DESCRIPTORS, _DESCRIPTORS_WITH_FILES = 16, 64


def zygote_options(config: ToolServerConfig, strongest: IsolationLevel) -> ZygoteOptions:
    """Return the options of a new zygote. Raises ConfigError if a package is not installed."""
    isolation = config.isolation
    return ZygoteOptions(
        strongest=strongest,
        required=isolation.required,
        profile=isolation.profile,
        imports=isolation.imports,
        packages=package_folder(isolation.imports),
        further=further_packages(isolation.packages),
        cpu_s=config.session_cpu_s,
        memory_mib=config.session_memory_mib,
        reply_limit_bytes=config.reply_limit_bytes,
        descriptors=session_limits(config).files,
        scratch_mib=isolation.scratch_mib,
        slots=min(config.max_sessions + MOST_IDLE_CHILDREN, MOST_SLOTS),
    )


def session_limits(config: ToolServerConfig) -> SessionLimits:
    """Return the resource limits of one session of a server with `config`."""
    files = config.isolation.profile != "compute"
    return SessionLimits(
        cpu_s=config.session_cpu_s,
        memory_mib=config.session_memory_mib,
        reply_bytes=config.reply_limit_bytes,
        files=_DESCRIPTORS_WITH_FILES if files else _DESCRIPTORS,
        scratch_mib=config.isolation.scratch_mib if files else 0,
    )


def isolation_report(
    config: ToolServerConfig, level: IsolationLevel, landlock: int, refusals: dict[str, str]
) -> IsolationReport:
    """Return the report of a server whose zygote achieved `level`."""
    return IsolationReport(
        level=level,
        profile=config.isolation.profile,
        imports=config.isolation.imports,
        landlock=landlock,
        kernel=platform.release(),
        machine=platform.machine(),
        hash_seed=_HASH_SEED,
        limits=session_limits(config),
        refusals=refusals,
    )


def package_folder(imports: str) -> str:
    """Return the folder of the import profile's package. Raises ConfigError if there is none."""
    if imports == "stdlib":
        return ""
    spec = importlib.util.find_spec(imports)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"expected the package {imports} for tools.isolation.imports = {imports!r}, found that "
            f"it is not installed; install {imports}, or set the key to 'stdlib'"
        )
    return str(Path(spec.origin).parents[1])


def further_packages(names: Sequence[str]) -> dict[str, str]:
    """Return the folder that each package is in. Raises ConfigError if one is not installed."""
    found: dict[str, str] = {}
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not (spec.origin or spec.submodule_search_locations):
            raise ConfigError(
                f"expected installed packages in tools.isolation.packages, found {name!r}: install "
                "it where the tool server runs, or leave it out"
            )
        inside = list(spec.submodule_search_locations or ()) or [str(spec.origin)]
        found[name] = str(Path(inside[0]).parent)
    return found
