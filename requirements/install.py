"""Creates .venv from the lock file of this machine's device; standard library only.

`install.py` brings .venv up to date, or returns at once where it is. `install.py lock` writes the
lock files again. An install that was interrupted is recognised by a marker and starts over.
"""

import ast
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Device = Literal["cpu", "gpu"]

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".trialrun-installed"
"""What .venv was made from; written last."""
MARKER = VENV / ".trialrun-installing"
"""There while an install runs: one that is still there was interrupted."""

NO_CPU_TORCH = ["--constraints", "requirements/gpu.constraints"]
PYTORCH_CPU_PAGE = "https://download.pytorch.org/whl/cpu/torch/"
DISK_GIB: Mapping[Device, int] = {"cpu": 6, "gpu": 25}
LOCK_PYTHON = "3.11"
"""The locks are compiled for it; 3.12 was seen to resolve to the same versions."""


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Stamp:
    """What an installed .venv depends on; a difference in any field means work to do."""

    root: str
    python: str
    device: str
    inputs: str

    @property
    def place(self) -> tuple[str, str, str]:
        """The fields that an existing .venv cannot change: with another value it is made anew."""
        return (self.root, self.python, self.device)


def choose_device(environ: Mapping[str, str], has_gpu: Callable[[], bool]) -> Device:
    """Return the stack to install: TRIALRUN_DEVICE where it is set, else what the machine has."""
    wanted = environ.get("TRIALRUN_DEVICE", "")
    if wanted in ("cpu", "gpu"):
        return wanted
    if wanted:
        raise SetupError(
            f"TRIALRUN_DEVICE is {wanted!r}: expected `cpu` or `gpu`, or leave it unset"
        )
    return "gpu" if has_gpu() else "cpu"


def nvidia_present() -> bool:
    """Whether an NVIDIA device is there to be used."""
    if Path("/dev/nvidia0").exists():
        return True
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    listed = subprocess.run(
        [command, "-L"], capture_output=True, text=True, timeout=60, check=False
    )
    return listed.returncode == 0 and "GPU" in listed.stdout


def pip_settings(config_list: str) -> dict[str, list[str]]:
    """Read the output of `pip config list`: option name to its values, of the strongest source.

    pip takes an option from its environment variable, else from section [install], else [global].
    """
    found: dict[str, dict[str, list[str]]] = {}
    for line in config_list.splitlines():
        key, separator, value = line.partition("=")
        section, dot, option = key.rpartition(".")
        if separator and dot:
            found.setdefault(option, {})[section] = str(ast.literal_eval(value)).split()
    order = (":env:", "install", "global")
    return {
        option: next(sources[section] for section in order if section in sources)
        for option, sources in found.items()
        if any(section in sources for section in order)
    }


def uv_arguments(settings: Mapping[str, list[str]]) -> list[str]:
    """Say to uv, which does not read pip's configuration, where pip looks for packages."""
    arguments: list[str] = []
    flags = {
        "index-url": "--index-url",
        "extra-index-url": "--extra-index-url",
        "find-links": "--find-links",
        "trusted-host": "--allow-insecure-host",
    }
    for option, flag in flags.items():
        for value in settings.get(option, []):
            if not _is_missing_folder(value):
                arguments += [flag, value]
    if settings.get("no-index", ["false"])[0].lower() in ("1", "true", "yes", "on"):
        arguments.append("--no-index")
    # pip's rule is the best version over all indexes; uv's own is the first index with the name.
    return [*arguments, "--index-strategy", "unsafe-best-match"]


def _is_missing_folder(location: str) -> bool:
    if location.startswith("file://"):
        return not Path(location.removeprefix("file://")).exists()
    return "://" not in location and not Path(location).expanduser().exists()


def uv_environment(settings: Mapping[str, list[str]], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for uv: this one, with pip's certificate, proxy and timeout."""
    result = dict(environ)
    for option, variable in (
        ("cert", "SSL_CERT_FILE"),
        ("proxy", "ALL_PROXY"),
        ("default-timeout", "UV_HTTP_TIMEOUT"),
        ("timeout", "UV_HTTP_TIMEOUT"),
    ):
        if option in settings:
            result.setdefault(variable, settings[option][0])
    # An activated environment elsewhere must not become the one that is installed into.
    result.pop("VIRTUAL_ENV", None)
    return result


def fingerprint(root: Path, device: Device) -> str:
    """Hash of the files that decide what .venv holds."""
    digest = hashlib.sha256()
    for name in (f"requirements/{device}.lock", "pyproject.toml", "requirements/install.py"):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()


def read_stamp(path: Path) -> Stamp | None:
    """Return what was installed; None where nothing was, or the file is not a whole stamp."""
    try:
        return Stamp(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def locked_version(lock: str, name: str) -> str:
    """Return the version of package `name` in the text of a lock file."""
    for line in lock.splitlines():
        if line.startswith(f"{name}=="):
            return line.removeprefix(f"{name}==").split()[0]
    raise SetupError(f"the lock file has no {name}: run `make lock`")


class Install:
    """One run of the set-up for `device`."""

    def __init__(self, device: Device) -> None:
        self.device: Device = device
        self.lock_file = ROOT / "requirements" / f"{device}.lock"
        self.wanted = Stamp(
            root=str(ROOT),
            python=f"{platform.python_version()} {os.path.realpath(sys.executable)}",
            device=device,
            inputs=fingerprint(ROOT, device),
        )

    def run(self) -> None:
        """Bring .venv up to date."""
        if self._is_current():
            return
        _check_machine(self.device)
        started = time.monotonic()
        # Two commands started together: one installs, the other waits and finds it done.
        with (ROOT / "requirements" / "install.py").open() as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            if self._is_current():
                return
            print(f"setup: the {self.device} stack, Python {platform.python_version()}, into .venv")
            self._prepare_venv()
            MARKER.touch()
            self._install()
            STAMP.write_text(json.dumps(asdict(self.wanted)) + "\n")
            MARKER.unlink()
        print(f"setup: done in {time.monotonic() - started:.0f} s")

    def _is_current(self) -> bool:
        return PYTHON.exists() and not MARKER.exists() and read_stamp(STAMP) == self.wanted

    def _prepare_venv(self) -> None:
        """Leave a .venv with a working pip: the one that is there where it can be kept."""
        stamp = read_stamp(STAMP)
        moved = stamp is not None and stamp.place != self.wanted.place
        kept = not MARKER.exists() and not moved
        if kept and _works([str(PYTHON), "-m", "pip"]):
            return
        if importlib.util.find_spec("ensurepip") is None:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise SetupError(
                f"{sys.executable} cannot create virtual environments: it has no ensurepip. "
                f"On Debian and Ubuntu: sudo apt-get install python{version}-venv"
            )
        run_step(
            "create the virtual environment", [sys.executable, "-m", "venv", "--clear", str(VENV)]
        )

    def _install(self) -> None:
        lock = self.lock_file.read_text()
        pip = [str(PYTHON), "-m", "pip"]
        pip_install = [*pip, "install", "-qq", "--disable-pip-version-check"]
        run_step("install uv", [*pip_install, f"uv=={locked_version(lock, 'uv')}"])
        settings = read_pip_settings(pip)
        environ = uv_environment(settings, os.environ)
        places = uv_arguments(settings)
        if self.device == "cpu" and not _finds_torch(lock, places, environ):
            print("setup: pip is not configured with a CPU build of torch: taking PyTorch's own")
            places += ["--find-links", PYTORCH_CPU_PAGE]
        if self.device == "gpu":
            places += NO_CPU_TORCH
        uv = [str(PYTHON), "-m", "uv", "pip"]
        target = ["--python", str(PYTHON)]
        # Compiled now, as pip does: a run starts some twenty processes that import torch, and where
        # PYTHONDONTWRITEBYTECODE is set, as in many containers, each would compile it anew.
        sync = [*uv, "sync", "--compile-bytecode", *target, *places, str(self.lock_file)]
        run_step("install the pinned packages", sync, environ)
        # The build needs setuptools only, which the lock holds: nothing is fetched for it.
        editable = [*uv, "install", "--quiet", *target, "--no-deps", "--no-build-isolation"]
        run_step("install the command `trialrun`", [*editable, "-e", "."], environ)
        _check_torch(self.device)


def read_pip_settings(pip: Sequence[str]) -> dict[str, list[str]]:
    """Ask pip for its configuration: files and PIP_* variables together."""
    listed = subprocess.run(
        [*pip, "config", "list"], capture_output=True, text=True, timeout=120, check=False
    )
    return pip_settings(listed.stdout)


def _finds_torch(lock: str, places: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether the CPU build of torch that the lock names is where pip is configured to look."""
    command = [str(PYTHON), "-m", "uv", "pip", "compile", "--quiet", "--no-deps", *places, "-"]
    found = subprocess.run(
        [*command, "--python", str(PYTHON)],
        input=f"torch=={locked_version(lock, 'torch')}\n",
        env=dict(environ),
        capture_output=True,
        text=True,
        check=False,
    )
    return found.returncode == 0


def _check_torch(device: Device) -> None:
    """Refuse a torch build of the other device: it would only fail later, and less clearly."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    shown = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True)
    version = shown.stdout.strip()
    if version.endswith("+cpu") != (device == "cpu"):
        raise SetupError(
            f"expected torch for {device}, found {version}: an index or a find-links folder that "
            "pip is configured with offers the other build; look at `pip config list`"
        )


def _check_machine(device: Device) -> None:
    if sys.platform != "linux":
        raise SetupError(f"the pinned vLLM runs on Linux, this is {sys.platform}: use a container")
    free_gib = shutil.disk_usage(ROOT).free / 2**30
    if not STAMP.exists() and free_gib < DISK_GIB[device]:
        raise SetupError(
            f"the {device} stack needs {DISK_GIB[device]} GiB of disk, found {free_gib:.1f} GiB "
            f"free in {ROOT}"
        )


def _works(command: Sequence[str]) -> bool:
    try:
        return (
            subprocess.run([*command, "--version"], capture_output=True, check=False).returncode
            == 0
        )
    except OSError:
        return False


def run_step(what: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
    """Run one step; what it writes is passed on, less uv's list of every package."""
    started = time.monotonic()
    print(f"setup: {what} ...", flush=True)
    env = None if environ is None else dict(environ)
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if not line.startswith((" + ", " - ", " ~ ")):
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        raise SetupError(
            f"could not {what} (exit code {process.returncode}); what it said is above. Where a "
            "host could not be reached, see `pip config list`; then run the same command again"
        )
    print(f"setup: {what}: {time.monotonic() - started:.1f} s", flush=True)


def write_locks() -> None:
    """Resolve cpu.lock, gpu.lock and dashboard.lock again; versions change only where they must."""
    settings = read_pip_settings([str(PYTHON), "-m", "pip"])
    environ = uv_environment(settings, os.environ)
    for device in ("cpu", "gpu"):
        places = uv_arguments(settings) + (NO_CPU_TORCH if device == "gpu" else [])
        command = [str(PYTHON), "-m", "uv", "pip", "compile", "--quiet", "pyproject.toml", *places]
        command += [word for extra in (device, "dashboard", "dev") for word in ("--extra", extra)]
        command += ["--custom-compile-command", "make lock"]
        command += ["--override", f"requirements/{device}.overrides"]
        command += ["--python-version", LOCK_PYTHON]
        command += ["--python-platform", "x86_64-manylinux_2_28"]
        command += ["--output-file", f"requirements/{device}.lock"]
        run_step(f"write requirements/{device}.lock", command, environ)
    run_step("write requirements/dashboard.lock", dashboard_lock(settings), environ)


def dashboard_lock(settings: Mapping[str, list[str]]) -> list[str]:
    """Return the command that writes requirements/dashboard.lock.

    It is for laptops of every system, so it is universal; versions are those of the tested stack.
    It has hashes, because whoever installs it has no other lock of these packages.
    """
    return [
        *(str(PYTHON), "-m", "uv", "pip", "compile", "--quiet", *uv_arguments(settings)),
        *("requirements/dashboard.in", "--constraints", "requirements/cpu.lock"),
        *("--universal", "--generate-hashes", "--python-version", LOCK_PYTHON),
        *("--custom-compile-command", "make lock"),
        *("--output-file", "requirements/dashboard.lock"),
    ]


def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 0 done, 1 failed, 2 usage."""
    if arguments not in ([], ["lock"]):
        print("usage: install.py [lock]", file=sys.stderr)
        return 2
    try:
        Install(choose_device(os.environ, nvidia_present)).run()
        if arguments == ["lock"]:
            write_locks()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run the same command again to start over", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
