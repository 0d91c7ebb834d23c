"""Real vLLM against transformers: logprobs, weight pushes, version spans, cache, failures."""

import asyncio
import importlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cluster.fleet.health.engine_watch import EngineWatch
from envs.errors import EngineError, EpisodeError, WeightSyncError
from learner.outputs.publish import SharedMemoryPublisher
from rollout.config import EngineConfig, ModelConfig
from rollout.engine import Completion, Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.vllm_environment import engine_environment
from rollout.weights.manifest import WeightLayout

pytestmark = [
    pytest.mark.real,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

VOCAB = 256
MAX_LEN = 512
LOAD_TIMEOUT_S = 6.0
STOPS = (0, 1)
MAX_LOGPROB_DIFFERENCE = 1e-3
LONG = SamplingParams(max_tokens=400, temperature=1.0, seed=1)
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)


@dataclass
class Rig:
    """One engine, the models it has been given by version, and the sender of new ones."""

    engine: Any
    publisher: SharedMemoryPublisher
    models: dict[int, LlamaForCausalLM]
    tied: bool
    core: int
    """Process id of vLLM's engine core."""

    async def sample(self, prompt: list[int], params: SamplingParams) -> Completion:
        return await self.engine.sample(Prompt(f"r{id(prompt)}", prompt, ()), params)

    async def push(self) -> int:
        """Give the engine fresh random weights under the next version."""
        version = self.engine.version + 1
        self.models[version] = tiny_llama(self.tied, seed=version)
        weights = self.models[version].named_parameters()
        await self.engine.load_weights(self.publisher.publish(version, weights))
        return version


def tiny_llama(tied: bool, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LEN,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


async def start_rig(folder: Path, *, tied: bool, clear_cache_on_load: bool) -> Rig:
    vllm_engine = importlib.import_module(
        "rollout.engines.vllm_engine"
    )  # not while collecting: 10 s
    model = tiny_llama(tied, seed=0)
    model.save_pretrained(folder)
    engine = vllm_engine.VllmEngine(
        EngineSpec(
            model_path=str(folder),
            model=ModelConfig(max_model_len=MAX_LEN),
            engine=EngineConfig.model_validate(
                {"kv_cache_mib": 64, "load_timeout_s": LOAD_TIMEOUT_S}
            ),
            seed=7,
        ),
        stop_token_ids=STOPS,
        clear_cache_on_load=clear_cache_on_load,
    )
    others = set(psutil.Process().children())
    await engine.start()
    (core,) = [
        child.pid
        for child in set(psutil.Process().children()) - others
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
    return Rig(engine, SharedMemoryPublisher(folder, engine.layout), {0: model}, tied, core)


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(gpu=False).items():
            patch.setenv(name, value)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def untied(environment: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("untied")
    rig = await start_rig(folder, tied=False, clear_cache_on_load=True)
    yield rig
    rig.publisher.close()
    await rig.engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def salted(environment: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """Tied weights; the prefix cache is never cleared, so only the salt keeps versions apart."""
    folder = tmp_path_factory.mktemp("tied")
    rig = await start_rig(folder, tied=True, clear_cache_on_load=False)
    yield rig
    rig.publisher.close()
    await rig.engine.close()


@pytest.fixture(params=["untied", "salted"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return request.getfixturevalue(request.param)


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (length,), generator=generator).tolist()


@torch.no_grad()
def reference_logprobs(
    model: LlamaForCausalLM, prompt: list[int], completion: Completion, temperature: float = 1.0
) -> torch.Tensor:
    """Return transformers' logprobs of the completion's tokens, shape [T]."""
    ids_T = torch.tensor([*prompt, *completion.token_ids])
    logits_TV = model(ids_T[None]).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits_TV.log_softmax(-1).gather(1, ids_T[len(prompt) :, None])[:, 0]


def difference(
    model: LlamaForCausalLM, prompt: list[int], completion: Completion, temperature: float = 1.0
) -> torch.Tensor:
    expected_T = reference_logprobs(model, prompt, completion, temperature)
    return (torch.tensor(completion.logprobs).double() - expected_T).abs()


@torch.no_grad()
def greedy_reference(model: LlamaForCausalLM, prompt: list[int], max_tokens: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + max_tokens:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in STOPS:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_behaviour_logprobs_match_transformers(rig: Rig, temperature: float) -> None:
    prompts = [prompt_of(40 + index, seed=index) for index in range(16)]
    params = [
        SamplingParams(max_tokens=64, temperature=temperature, seed=index) for index in range(16)
    ]
    completions = await asyncio.gather(*map(rig.sample, prompts, params))
    model = rig.models[rig.engine.version]
    differences = torch.cat(
        [difference(model, p, c, temperature) for p, c in zip(prompts, completions, strict=True)]
    )
    print(
        f"\n|d logprob| at temperature {temperature}: mean {differences.mean():.1e} "
        f"p99 {differences.quantile(0.99):.1e} max {differences.max():.1e}"
    )
    assert differences.max() < MAX_LOGPROB_DIFFERENCE


async def test_greedy_after_a_push_is_that_of_the_new_weights(rig: Rig) -> None:
    prompt = prompt_of(30, seed=100)
    before = await rig.sample(prompt, GREEDY)
    version = await rig.push()
    after = await rig.sample(prompt, GREEDY)
    assert list(after.token_ids) == greedy_reference(rig.models[version], prompt, 24)
    assert after.token_ids != before.token_ids
    assert [(span.start, span.version) for span in after.spans] == [(0, version)]
    assert difference(rig.models[version], prompt, after).max() < MAX_LOGPROB_DIFFERENCE


async def test_blocks_of_an_old_version_are_never_served(salted: Rig) -> None:
    prompt = prompt_of(130, seed=200)
    await salted.sample(prompt, GREEDY)  # leaves four blocks of the old version in the cache
    version = await salted.push()
    after = await salted.sample(prompt, GREEDY)
    assert difference(salted.models[version], prompt, after).max() < MAX_LOGPROB_DIFFERENCE


async def test_blocks_of_a_straddling_request_are_never_served(salted: Rig) -> None:
    prompt = prompt_of(70, seed=300)
    straddling = asyncio.create_task(
        salted.sample(prompt, SamplingParams(max_tokens=300, temperature=1.0, seed=1))
    )
    await salted.sample(prompt_of(5, seed=301), SamplingParams(max_tokens=1))
    version = await salted.push()
    straddled = await straddling
    assert len(straddled.spans) == 2
    longer = [*prompt, *straddled.token_ids]
    after = await salted.sample(longer, GREEDY)
    assert difference(salted.models[version], longer, after).max() < MAX_LOGPROB_DIFFERENCE


async def test_spans_say_which_weights_sampled_each_token(untied: Rig) -> None:
    prompt = prompt_of(50, seed=400)
    old = untied.engine.version
    straddling = asyncio.create_task(
        untied.sample(prompt, SamplingParams(max_tokens=400, temperature=1.0, seed=2))
    )
    # queued behind it: once this one has its token, the long one has some, too
    await untied.sample(prompt_of(5, seed=401), SamplingParams(max_tokens=1))
    new = await untied.push()
    completion = await straddling
    assert [span.version for span in completion.spans] == [old, new]
    cut = completion.spans[1].start
    assert 0 < cut < len(completion.token_ids)
    from_old = difference(untied.models[old], prompt, completion)
    from_new = difference(untied.models[new], prompt, completion)
    assert from_old[:cut].max() < MAX_LOGPROB_DIFFERENCE
    assert from_new[cut:].max() < MAX_LOGPROB_DIFFERENCE
    assert from_old[cut:].max() > 0.1
    assert from_new[:cut].max() > 0.1


async def test_a_seed_repeats_and_greedy_repeats(untied: Rig) -> None:
    prompt = prompt_of(20, seed=500)
    seeded = SamplingParams(max_tokens=24, temperature=1.0, seed=11)
    crowd = [untied.sample(prompt_of(25, seed=501 + i), GREEDY) for i in range(8)]
    first, second, other, *_ = await asyncio.gather(
        untied.sample(prompt, seeded),
        untied.sample(prompt, seeded),
        untied.sample(prompt, replace(seeded, seed=12)),
        *crowd,
    )
    alone = await untied.sample(prompt, seeded)
    assert first.token_ids == second.token_ids == alone.token_ids
    assert first.token_ids != other.token_ids
    greedy = [await untied.sample(prompt, GREEDY) for _ in range(2)]
    assert greedy[0].token_ids == greedy[1].token_ids


async def test_every_stop_token_stops_and_belongs_to_the_completion(untied: Rig) -> None:
    params = [SamplingParams(max_tokens=100, temperature=2.0, seed=index) for index in range(32)]
    prompt = prompt_of(10, seed=600)
    completions = await asyncio.gather(*[untied.sample(prompt, one) for one in params])
    stopped = [c for c in completions if c.finish_reason == "stop"]
    cut_off = [c for c in completions if c.finish_reason == "length"]
    assert cut_off
    assert {c.token_ids[-1] for c in stopped} == set(STOPS)
    assert all(not {*c.token_ids[:-1]} & {*STOPS} for c in stopped)
    assert all(len(c.token_ids) == 100 and not {*c.token_ids} & {*STOPS} for c in cut_off)


async def test_the_context_limits_prompt_and_completion(untied: Rig) -> None:
    completion = await untied.sample(
        prompt_of(MAX_LEN - 3, seed=700), SamplingParams(max_tokens=50, temperature=1.0, seed=700)
    )
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 3
    with pytest.raises(EpisodeError, match="max_model_len"):
        await untied.sample(prompt_of(MAX_LEN, seed=701), GREEDY)


async def test_refused_manifests_leave_the_old_weights_live(rig: Rig) -> None:
    prompt = prompt_of(30, seed=800)
    version = await rig.push()
    before = await rig.sample(prompt, GREEDY)
    good = rig.publisher.publish(version + 1, tiny_llama(rig.tied, 99).named_parameters())
    fewer = WeightLayout(good.layout.slots[:-1])
    for bad, complaint in (
        (replace(good, checksum="0" * 16), "checksum"),
        (replace(good, layout=fewer), good.layout.slots[-1].name),
        (replace(good, path=f"{good.path}.gone"), "cannot map"),
        (replace(good, transport="cuda_ipc"), "transport"),
        (replace(good, version=version - 1), "at least"),
    ):
        with pytest.raises(WeightSyncError, match=complaint):
            await rig.engine.load_weights(bad)
    assert rig.engine.version == version
    assert await rig.sample(prompt, GREEDY) == replace(before, queue_s=pytest.approx(0, abs=1))
    pushed = await rig.push()
    after = await rig.sample(prompt, GREEDY)
    assert list(after.token_ids) == greedy_reference(rig.models[pushed], prompt, 24)


async def test_another_sender_counts_versions_anew(rig: Rig, tmp_path: Path) -> None:
    prompt = prompt_of(40, seed=850)
    for version in (await rig.push(), 0):
        await rig.sample(prompt, GREEDY)  # its blocks stay in the prefix cache of the other sender
        rig.models[version] = tiny_llama(rig.tied, seed=500 + version)
        sender = SharedMemoryPublisher(tmp_path, rig.engine.layout)
        weights = rig.models[version].named_parameters()
        await rig.engine.load_weights(sender.publish(version, weights))
        sender.close()
        after = await rig.sample(prompt, GREEDY)
        assert (rig.engine.version, after.spans[0].version) == (version, version)
        assert list(after.token_ids) == greedy_reference(rig.models[version], prompt, 24)


async def test_a_paused_engine_waits_and_a_load_does_not_wake_it(untied: Rig) -> None:
    await untied.engine.pause()
    prompt = prompt_of(30, seed=900)
    waiting = asyncio.create_task(untied.sample(prompt, GREEDY))
    version = await untied.push()
    done, _ = await asyncio.wait({waiting}, timeout=0.5)
    assert not done
    await untied.engine.resume()
    completion = await waiting
    assert list(completion.token_ids) == greedy_reference(untied.models[version], prompt, 24)


async def test_64_requests_at_once_and_pushes_between(untied: Rig) -> None:
    prompts = [prompt_of(20 + index, seed=1000 + index) for index in range(64)]
    params = [SamplingParams(max_tokens=60, temperature=1.0, seed=index) for index in range(64)]
    requests = asyncio.gather(*map(untied.sample, prompts, params))
    while untied.engine.in_flight < 64:
        await asyncio.sleep(0)
    await untied.push()
    completions = await requests
    for prompt, completion in zip(prompts, completions, strict=True):
        ends = [span.start for span in completion.spans[1:]] + [len(completion.token_ids)]
        for span, end in zip(completion.spans, ends, strict=True):
            apart = difference(untied.models[span.version], prompt, completion)
            assert apart[span.start : end].max() < MAX_LOGPROB_DIFFERENCE


async def test_a_cancelled_task_aborts_its_request(untied: Rig) -> None:
    task = asyncio.create_task(untied.sample(prompt_of(30, seed=1100), LONG))
    while untied.engine.in_flight == 0:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert untied.engine.in_flight == 0


async def test_a_load_past_its_deadline_breaks_the_engine(untied: Rig) -> None:
    """Last of its engine: nobody knows which weights it holds."""
    in_flight = asyncio.create_task(untied.sample(prompt_of(30, seed=1200), LONG))
    while untied.engine.in_flight == 0:
        await asyncio.sleep(0)
    version = untied.engine.version
    os.kill(untied.core, signal.SIGSTOP)
    with pytest.raises(WeightSyncError, match=f"within {LOAD_TIMEOUT_S:g} s"):
        await untied.push()
    with pytest.raises(EngineError):
        await in_flight
    with pytest.raises(EngineError, match="replaced"):
        await untied.sample(prompt_of(30, seed=1201), GREEDY)
    assert untied.engine.version == version
    os.kill(untied.core, signal.SIGKILL)


async def test_a_frozen_engine_process_is_noticed_in_seconds(salted: Rig) -> None:
    busy = list[asyncio.Task[Completion]]()
    for _ in range(2):  # idle, then busy
        watch = EngineWatch(salted.engine)
        await watch.start()
        os.kill(salted.core, signal.SIGSTOP)
        with pytest.raises(EngineError, match=f"process {salted.core} of the engine is stopped"):
            for _ in range(160):  # 8 seconds
                watch.check()
                await asyncio.sleep(0.05)
        os.kill(salted.core, signal.SIGCONT)
        busy.append(asyncio.create_task(salted.sample(prompt_of(30, seed=1299), LONG)))
    await asyncio.gather(*busy, salted.engine.ping())


async def test_a_killed_engine_process_is_an_engine_error(salted: Rig) -> None:  # the last one
    task = asyncio.create_task(salted.sample(prompt_of(30, seed=1300), LONG))
    while salted.engine.in_flight == 0:
        await asyncio.sleep(0)
    os.kill(salted.core, signal.SIGKILL)
    with pytest.raises(EngineError):
        await task
    with pytest.raises(EngineError, match="replaced"):
        await salted.sample(prompt_of(30, seed=1301), GREEDY)
    with pytest.raises(EngineError):
        await salted.push()
