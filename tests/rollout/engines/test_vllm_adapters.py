"""Real vLLM with low-rank adapters against PEFT: parity after pushes, requests in flight, bytes."""

import asyncio
import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from envs.errors import WeightSyncError
from learner.backends.lora import is_factor, saved_name
from learner.outputs.publish import SharedMemoryPublisher
from rollout.config import EngineConfig, LoraConfig, ModelConfig
from rollout.engine import Completion, Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.vllm_environment import engine_environment
from rollout.weights.layout import checkpoint_layout
from rollout.weights.manifest import WeightLayout

pytestmark = [
    pytest.mark.real,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

MAX_LEN = 256
LORA = LoraConfig(rank=4, alpha=8.0)
MAX_LOGPROB_DIFFERENCE = 1e-3
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)


@dataclass
class Rig:
    """An engine with adapters, the learner's model, and the sender between them."""

    engine: Any
    publisher: SharedMemoryPublisher
    model: Any
    folder: Path
    history: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    async def push(self, version: int) -> None:
        """Draw adapters and send them."""
        generator = torch.Generator().manual_seed(version)
        factors = {n: p for n, p in self.model.named_parameters() if is_factor(n)}
        for parameter in factors.values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        self.history[version] = {name: p.data.clone() for name, p in factors.items()}
        named = [(saved_name(name), p.data) for name, p in factors.items()]
        await self.engine.load_weights(self.publisher.publish(version, named))

    @torch.no_grad()
    def difference(self, prompt: list[int], completion: Completion) -> float:
        """Return the largest |d logprob| over the completion, each span under its version."""
        ids_T = torch.tensor([*prompt, *completion.token_ids])
        worst = 0.0
        ends = [span.start for span in completion.spans[1:]] + [len(completion.token_ids)]
        for span, end in zip(completion.spans, ends, strict=True):
            for name, parameter in self.model.named_parameters():
                if is_factor(name):
                    parameter.data = self.history[span.version][name].clone()
            logits_TV = self.model(ids_T[None]).logits[0, len(prompt) - 1 : -1].double()
            expected_T = logits_TV.log_softmax(-1).gather(1, ids_T[len(prompt) :, None])[:, 0]
            found_T = torch.tensor(completion.logprobs).double()
            gaps_T = (found_T - expected_T)[span.start : end].abs()
            worst = max(worst, float(gaps_T.max()))
        return worst


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LEN,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    importlib.import_module("learner.backends.peft_adapters").add_adapters(model, LORA)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(gpu=False).items():
            patch.setenv(name, value)
        vllm_engine = importlib.import_module("rollout.engines.vllm_engine")
        engine = vllm_engine.VllmEngine(
            EngineSpec(
                model_path=str(folder),
                model=ModelConfig(max_model_len=MAX_LEN, lora=LORA),
                engine=EngineConfig(kv_cache_mib=64),
                seed=7,
            ),
            stop_token_ids=(0,),
        )
        await engine.start()
        one = Rig(engine, SharedMemoryPublisher(folder, engine.layout), model, folder)
        factors = {n: p for n, p in model.named_parameters() if is_factor(n)}
        one.history[0] = {
            name: torch.zeros_like(p) if ".lora_B." in name else p.data.clone()
            for name, p in factors.items()
        }
        yield one
        one.publisher.close()
        await engine.close()


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (length,), generator=generator).tolist()


async def test_logprobs_agree_before_and_after_pushes(rig: Rig) -> None:
    prompts = [prompt_of(40 + index, index) for index in range(4)]
    seen = set()
    for version in (0, 1, 2):
        if version:
            await rig.push(version)
        completions = await asyncio.gather(
            *(
                rig.engine.sample(Prompt(f"v{version}-{i}", p, ()), GREEDY)
                for i, p in enumerate(prompts)
            )
        )
        worst = max(map(rig.difference, prompts, completions))
        print(f"\nversion {version}: largest |d logprob| {worst:.1e}")
        assert worst < MAX_LOGPROB_DIFFERENCE
        assert all(c.spans[0].version == version for c in completions)
        seen.add(tuple(c.token_ids for c in completions))
    assert len(seen) == 3, "each version says something else"


async def test_a_request_in_flight_goes_on_with_the_new_adapter(rig: Rig) -> None:
    prompt = prompt_of(30, 50)
    long = SamplingParams(max_tokens=200, temperature=1.0, seed=3)
    for wait_s in (0.0, 0.1, 0.3, 1.0):  # a push may come before the request's first token
        running = asyncio.create_task(
            rig.engine.sample(Prompt(f"flight-{wait_s}", prompt, ()), long)
        )
        while rig.engine.in_flight == 0:
            await asyncio.sleep(0)
        await asyncio.sleep(wait_s)
        version = rig.engine.version + 1
        await rig.push(version)
        completion = await running
        versions = [span.version for span in completion.spans]
        assert rig.difference(prompt, completion) < MAX_LOGPROB_DIFFERENCE
        if len(versions) > 1:
            break
    assert versions == [version - 1, version]


async def test_a_push_carries_the_adapters_alone(rig: Rig) -> None:
    full = checkpoint_layout(str(rig.folder), "float32").nbytes
    print(f"\nbytes of a push: {rig.engine.layout.nbytes}, of all weights {full}")
    assert rig.engine.layout.nbytes == 4 * sum(t.numel() for t in rig.history[0].values())
    assert rig.engine.layout.nbytes * 8 < full


async def test_a_damaged_push_is_refused_and_the_old_adapter_stays(rig: Rig) -> None:
    prompt, version = prompt_of(25, 60), rig.engine.version
    before = await rig.engine.sample(Prompt("before", prompt, ()), GREEDY)
    named = [(slot.name, torch.ones(slot.shape)) for slot in rig.engine.layout.slots]
    manifest = rig.publisher.publish(version + 1, named)
    with Path(manifest.path).open("rb+") as file:
        file.write(b"damaged")
    with pytest.raises(WeightSyncError, match="checksum"):
        await rig.engine.load_weights(manifest)
    after = await rig.engine.sample(Prompt("after", prompt, ()), GREEDY)
    assert rig.engine.version == version
    assert after.token_ids == before.token_ids


async def test_a_push_of_all_weights_is_refused(rig: Rig) -> None:
    layout: WeightLayout = checkpoint_layout(str(rig.folder), "float32")
    sender = SharedMemoryPublisher(rig.folder, layout)
    tensors = [(slot.name, torch.zeros(slot.shape)) for slot in layout.slots]
    with pytest.raises(WeightSyncError, match="layout"):
        await rig.engine.load_weights(sender.publish(rig.engine.version + 1, tensors))
    sender.close()
