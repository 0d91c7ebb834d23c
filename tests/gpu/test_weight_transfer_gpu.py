"""Weight pushes to an engine on a GPU: through shared memory and by CUDA IPC."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learner.outputs.publish import CudaIpcPublisher, Publisher, SharedMemoryPublisher
from rollout.config import EngineConfig, ModelConfig
from rollout.engine import Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.vllm_environment import engine_environment
from rollout.weights.manifest import Transport

pytestmark = [pytest.mark.real, pytest.mark.gpu, pytest.mark.timeout(600)]

PROMPT = list(range(1, 60))
TOKENS = 16


def tiny_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def greedy_reference(model: LlamaForCausalLM) -> list[int]:
    ids = list(PROMPT)
    for _ in range(TOKENS):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


async def start_engine(folder: Path, transport: Transport) -> Any:
    vllm_engine = importlib.import_module("rollout.engines.vllm_engine")
    tiny_llama(0).save_pretrained(folder)
    engine = vllm_engine.VllmEngine(
        EngineSpec(
            model_path=str(folder),
            model=ModelConfig.model_validate({"max_model_len": 256}),
            engine=EngineConfig.model_validate({"gpu_memory_utilization": 0.2}),
            seed=1,
            device="cuda",
            transport=transport,
        ),
        stop_token_ids=(),
    )
    await engine.start()
    return engine


async def push_and_compare(engine: Any, publisher: Publisher) -> None:
    for version in (1, 2, 3):
        trained = tiny_llama(seed=version)
        manifest = publisher.publish(version, trained.named_parameters())
        await engine.load_weights(manifest)
        sampled = await engine.sample(
            Prompt("greedy", PROMPT, ()), SamplingParams(max_tokens=TOKENS, temperature=0.0)
        )
        assert list(sampled.token_ids) == greedy_reference(trained)
        assert [(span.start, span.version) for span in sampled.spans] == [(0, version)]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in engine_environment(gpu=True).items():
        monkeypatch.setenv(name, value)


async def test_shared_memory_reaches_a_gpu_engine(tmp_path: Path) -> None:
    engine = await start_engine(tmp_path, "shm")
    publisher = SharedMemoryPublisher(tmp_path, engine.layout)
    await push_and_compare(engine, publisher)
    publisher.close()
    await engine.close()


async def test_cuda_ipc_on_one_gpu(tmp_path: Path) -> None:
    engine = await start_engine(tmp_path, "cuda_ipc")
    publisher = CudaIpcPublisher(torch.device("cuda", 0), engine.layout)
    await push_and_compare(engine, publisher)
    await engine.close()
    publisher.close()
