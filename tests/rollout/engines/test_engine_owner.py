"""Engine processes end with the process that owns them, also if that is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rollout.engines.vllm_environment import engine_environment
from tests.project_tree import ROOT
from tests.waiting import expect_within, lives

_ROLES = """
import subprocess, sys, time
from rollout.engines.engine_owner import end_with_owner, own_engines
role, *below = sys.argv[1:]
if role == "owner":
    own_engines()
if role != "core that watches nothing":
    end_with_owner()
if below:
    subprocess.Popen([sys.executable, __file__, *below])
print("up", flush=True)
time.sleep(600)
"""
"""A process of the first role, which starts one of the next."""
_SAMPLES = """
import asyncio, sys
from rollout.config import EngineConfig, ModelConfig
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.vllm_engine import VllmEngine

async def main():
    sizes = EngineConfig(kv_cache_mib=64, tensor_parallel_size=int(sys.argv[2]))
    model = ModelConfig(max_model_len=256)
    spec = EngineSpec(model_path=sys.argv[1], model=model, engine=sizes, seed=7)
    engine = VllmEngine(spec, stop_token_ids=(0,))
    await engine.start()
    print("ready", flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are killed at the end, with all that they have started."""
    processes: list[subprocess.Popen[str]] = []
    known: list[psutil.Process] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            known += psutil.Process(process.pid).children(recursive=True)
            process.kill()
        process.wait()
    for process in known:
        process.kill()


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


def below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def expect_all_end(processes: list[psutil.Process]) -> None:
    expect_within(30.0, lambda: not any(map(lives, processes)), "all of them ended")


@pytest.fixture
def roles(tmp_path: Path) -> str:
    script = tmp_path / "roles.py"
    script.write_text(_ROLES)
    return str(script)


@pytest.mark.parametrize("core", ["core", "core that watches nothing"])
def test_processes_end_with_a_killed_owner(
    started: list[subprocess.Popen[str]], roles: str, core: str
) -> None:
    owner = start(roles, "owner", core, "worker")
    started.append(owner)
    assert [line_of(owner) for _ in range(3)] == ["up\n"] * 3
    processes = below(owner)
    assert len(processes) == 2 and all(map(lives, processes))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    expect_all_end(processes)


def test_an_engine_whose_owner_is_gone_before_it_looks_ends(
    started: list[subprocess.Popen[str]], roles: str
) -> None:
    gone = start("-c", "pass")
    gone.wait()
    engine = start(roles, "core", TRIALRUN_ENGINE_OWNER=str(gone.pid))
    started.append(engine)
    assert engine.wait(30.0) == -signal.SIGKILL


def test_a_process_without_an_owner_goes_on(
    started: list[subprocess.Popen[str]], roles: str
) -> None:
    free = start(roles, "core")
    started.append(free)
    assert line_of(free) == "up\n"


@pytest.mark.real
@pytest.mark.timeout(240)
@pytest.mark.parametrize("parallel", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_vllms_processes_end_with_a_killed_client(
    started: list[subprocess.Popen[str]], tmp_path: Path, parallel: str
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path)
    script = tmp_path / "samples.py"
    script.write_text(_SAMPLES)
    # On one NUMA node vLLM does not divide the cores over two workers by itself.
    cores = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if parallel == "2" else {}
    client = start(str(script), str(tmp_path), parallel, **engine_environment(gpu=False), **cores)
    started.append(client)
    assert client.stdout is not None
    assert "ready\n" in client.stdout  # vLLM has lines of its own before it
    # The resource tracker of `multiprocessing` ends by itself.
    engines = [one for one in below(client) if "resource_tracker" not in " ".join(one.cmdline())]
    assert len(engines) == (1 if parallel == "1" else 3), [one.cmdline() for one in engines]
    client.send_signal(signal.SIGKILL)
    client.wait()
    expect_all_end(engines)
