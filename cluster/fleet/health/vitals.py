"""Signs of life of processes on this machine, from /proc.

They tell a process that is stopped, or waits for nothing that will come, from one that is too busy
to answer.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_STATE, _PARENT, _UTIME, _STIME, _STARTED = 0, 1, 11, 12, 19
"""Fields of `stat` behind the process's name; see proc(5), where they are 3, 4, 14, 15 and 22."""


class Sign(StrEnum):
    """Whether a process lives."""

    ALIVE = "alive"
    STOPPED = "stopped"
    """By SIGSTOP or a debugger."""
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vital:
    """What a look at a process found."""

    sign: Sign
    cpu_s: float = 0.0
    """Seconds of processor time that it has used so far."""
    at_work: bool = False
    """Whether one of its threads runs, or waits for a processor or a disk."""
    started: int = 0
    """When it started, in ticks since the boot; tells it from a later process of the same number.
    """


GONE = Vital(sign=Sign.GONE)


def vital_of(pid: int) -> Vital:
    """Return the signs of life of the process `pid`."""
    fields = _stat(_PROC / str(pid) / "stat")
    if fields is None or fields[_STATE] in "ZXx":
        return GONE
    stopped = fields[_STATE] in "Tt"
    return Vital(
        sign=Sign.STOPPED if stopped else Sign.ALIVE,
        cpu_s=(int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_S,
        at_work=not stopped and _at_work(pid),
        started=int(fields[_STARTED]),
    )


def descendants(pid: int) -> list[int]:
    """Return the processes that `pid` has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and (fields := _stat(entry / "stat")) is not None:
            children.setdefault(int(fields[_PARENT]), []).append(int(entry.name))
    found, waiting = list[int](), [pid]
    while waiting:
        inner = children.get(waiting.pop(), [])
        found += inner
        waiting += inner
    return found


def _at_work(pid: int) -> bool:
    try:
        threads = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return False
    states = (_stat(thread / "stat") for thread in threads)
    return any(fields is not None and fields[_STATE] in "RD" for fields in states)


def _stat(path: Path) -> list[str] | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
