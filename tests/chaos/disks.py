"""A disk that can be filled, and one that can be made slow.

Full: the run directory lies on a small tmpfs, which only root can mount. Slow: a library that is
preloaded into the driver delays what it writes there; it needs a C compiler.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import wait_until

SOURCE = Path(__file__).with_name("slow_disk.c")
_SIZE_MIB = 512


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of a run directory, and the switch that makes it slow."""

    folder: Path
    switch: Path
    """Folder of the control file and of the witness; on another disk."""

    @property
    def filler(self) -> Path:
        return self.folder / "filler"

    @property
    def control(self) -> Path:
        return self.switch / "slow"

    @property
    def counter(self) -> Path:
        return self.switch / "delayed"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a driver whose writes can be slowed down; empty without a compiler."""
        library = self.switch / "slow_disk.so"
        if not library.exists():
            return {}
        return {
            "LD_PRELOAD": str(library),
            "TRIALRUN_SLOW_CONTROL": str(self.control),
            "TRIALRUN_SLOW_FOLDER": str(self.folder),
            "TRIALRUN_SLOW_COUNTER": str(self.counter),
        }

    def fill(self) -> str:
        """Take all room that is left; return the proof."""
        with self.filler.open("ab", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
        free = os.statvfs(self.folder).f_bavail
        return f"{free} free blocks" if not free else ""

    def empty(self) -> bool:
        """Give the room back; return whether it had been taken."""
        taken = self.filler.exists()
        self.filler.unlink(missing_ok=True)
        return taken

    def slow_down(self) -> str:
        """Delay writes from now on; return the proof that some were."""
        before = self._delayed()
        self.control.touch()
        return (
            f"{self._delayed()} delayed" if wait_until(lambda: self._delayed() > before, 60) else ""
        )

    def speed_up(self) -> None:
        self.control.unlink(missing_ok=True)

    def _delayed(self) -> int:
        return self.counter.stat().st_size if self.counter.exists() else 0


def compile_library(disk: Disk) -> bool:
    """Make the library of the slow disk; return whether there is a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return False
    library = disk.switch / "slow_disk.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True
    )
    return True


@contextmanager
def small_disk(disk: Disk) -> Iterator[bool]:
    """Mount a small tmpfs at the folder of `disk`; yield False where nobody may."""
    mounted = os.geteuid() == 0 and _run(
        "mount", "-t", "tmpfs", "-o", f"size={_SIZE_MIB}m", "tmpfs", str(disk.folder)
    )
    try:
        yield mounted
    finally:
        if mounted:
            _run("umount", "--lazy", str(disk.folder))


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
