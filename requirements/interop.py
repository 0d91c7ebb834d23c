"""Creates .venv-interop: foreign parties that the tests in tests/interop speak with.

`interop.py` brings it up to date, or returns at once where it is. `interop.py lock` writes the lock
files again. Runs with .venv's Python, which has uv.
"""

import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from install import (
    LOCK_PYTHON,
    PYTHON,
    ROOT,
    SetupError,
    read_pip_settings,
    run_step,
    uv_arguments,
    uv_environment,
)

ENVIRONMENTS = {
    "interop": ROOT / ".venv-interop",
    "verifiers": ROOT / ".venv-interop/verifiers",
    "storage": ROOT / ".venv-interop/storage",
}
"""Name of the lock file to the environment it fills; the others lie inside of the first."""
STAMP = ROOT / ".venv-interop" / ".trialrun-installed"
"""What both were made from; written last, so an interrupted install starts over."""


def wanted_stamp() -> str:
    """Return what the environments depend on: their place, the interpreter, the lock files."""
    digest = hashlib.sha256(f"{ROOT}\0{PYTHON.resolve()}\0{sys.version}".encode())
    for name in (*(f"{name}.lock" for name in ENVIRONMENTS), "interop.py"):
        digest.update((ROOT / "requirements" / name).read_bytes())
    return digest.hexdigest()


def is_current() -> bool:
    """Whether there is nothing to do."""
    return STAMP.exists() and STAMP.read_text() == wanted_stamp()


def install() -> None:
    """Bring .venv-interop up to date. Raises SetupError."""
    if is_current():
        return
    started = time.monotonic()
    # Two commands started together: one installs, the other waits and finds it done.
    with Path(__file__).open() as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        if is_current():
            return
        settings = read_pip_settings([str(PYTHON), "-m", "pip"])
        environ = uv_environment(settings, os.environ)
        uv = [str(PYTHON), "-m", "uv"]
        for name, place in ENVIRONMENTS.items():
            make = [*uv, "venv", "--quiet", "--clear", "--python", str(PYTHON), str(place)]
            run_step(f"create {place.relative_to(ROOT)}", make, environ)
            lock = f"requirements/{name}.lock"
            target = ["--python", str(place / "bin" / "python")]
            # Where PYTHONDONTWRITEBYTECODE is set, each start would compile the packages anew.
            sync = [*uv, "pip", "sync", "--compile-bytecode", *target]
            run_step(f"install {lock}", [*sync, *uv_arguments(settings), lock], environ)
        STAMP.write_text(wanted_stamp())
    print(f"setup: .venv-interop done in {time.monotonic() - started:.0f} s")


def write_locks() -> None:
    """Resolve the lock files again; versions change only where they must."""
    settings = read_pip_settings([str(PYTHON), "-m", "pip"])
    environ = uv_environment(settings, os.environ)
    for name in ENVIRONMENTS:
        command = [str(PYTHON), "-m", "uv", "pip", "compile", "--quiet", *uv_arguments(settings)]
        command += ["--custom-compile-command", "make lock", "--python-version", LOCK_PYTHON]
        command += ["--python-platform", "x86_64-manylinux_2_28"]
        overrides = ROOT / "requirements" / f"{name}.overrides"
        if overrides.exists():
            command += ["--override", str(overrides.relative_to(ROOT))]
        command += [f"requirements/{name}.in", "--output-file", f"requirements/{name}.lock"]
        run_step(f"write requirements/{name}.lock", command, environ)


def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 0 done, 1 failed, 2 usage."""
    if arguments not in ([], ["lock"]):
        print("usage: interop.py [lock]", file=sys.stderr)
        return 2
    try:
        if arguments:
            write_locks()
        install()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
