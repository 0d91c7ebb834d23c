"""The engine that samples with vLLM: token ids in, token ids out, weights swapped between steps."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, astuple
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from vllm import SamplingParams as VllmSamplingParams
from vllm.config import WeightTransferConfig
from vllm.config.lora import MaxLoRARanks
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.logprobs import FlatLogprobs
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from envs.errors import EngineError, EpisodeError, WeightSyncError
from rollout.engine import Completion, FinishReason, Prompt, SamplingParams, VersionSpan
from rollout.engines.engine_owner import own_engines
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.vllm_text import text_model
from rollout.engines.vllm_weights import ADAPTER_ID, BACKEND, LOAD_FORMAT, REFUSED, WorkerExtension
from rollout.weights.layout import push_layout
from rollout.weights.manifest import Transport, WeightLayout, WeightManifest
from rollout.weights.model_folder import mixing_layers, read_architecture

_BACKENDS: Mapping[Transport, str] = {"shm": BACKEND, "cuda_ipc": "ipc"}
_FINISH: Mapping[str | None, FinishReason] = {"stop": "stop", "length": "length"}
_CLOSE_TIMEOUT_S = 10.0
_ROW_INVARIANT = "rollout.engines.vllm_row_invariant.RowInvariantExtension"
"""By name: importing it changes vLLM, which only the engine's own workers should see."""
_CHECK = "row_variant_layers"


class VllmEngine:
    """An Engine on vLLM's AsyncLLM, whose core and worker run in a process of their own.

    Every request salts the prefix cache with the policy version that it started under, so it is
    never served blocks of an older version. A request that is running during a load keeps its
    tokens and continues with the new weights.
    """

    def __init__(
        self, spec: EngineSpec, *, stop_token_ids: Sequence[int], clear_cache_on_load: bool = True
    ) -> None:
        """A turn stops at any of `stop_token_ids`.

        `clear_cache_on_load` drops the prefix cache at a load, so that running requests recompute
        their keys and values under the new weights too.
        """
        self._spec = spec
        self._stop_token_ids = list(stop_token_ids)
        self._clear_cache_on_load = clear_cache_on_load
        self._llm: AsyncLLM | None = None
        self._version = 0
        self._sender = ""
        self._paused = False
        self._broken = ""
        self._loading = asyncio.Lock()
        self._adapter = (
            LoRARequest("policy", ADAPTER_ID, "pushed") if spec.model.lora.rank else None
        )

    @property
    def version(self) -> int:
        return self._version

    @property
    def in_flight(self) -> int:
        """Requests that vLLM has taken and not finished."""
        return self._live().get_num_unfinished_requests()

    @property
    def process_ids(self) -> Sequence[int]:
        """Processes of vLLM's engine core."""
        manager: Any = None if self._llm is None else self._llm.engine_core.resources.engine_manager
        processes = () if manager is None else manager.processes
        return [process.pid for process in processes if process.pid is not None]

    @cached_property
    def layout(self) -> WeightLayout:
        """Layout that `load_weights` accepts: the checkpoint's tensors in the engine's dtype, or
        only the adapters if the model has any.
        """
        return push_layout(self._spec.model_path, self._spec.model)

    async def start(self) -> None:
        """Start vLLM. Raises EngineError when it fails or misses `start_timeout_s`.

        After the deadline the engine may still be starting, so the process must end.
        """
        deadline_s = self._spec.engine.start_timeout_s
        own_engines()
        try:
            async with asyncio.timeout(deadline_s):
                self._llm = await asyncio.to_thread(
                    AsyncLLM.from_engine_args, _engine_args(self._spec)
                )
                if self._adapter is not None:
                    await self._load_adapter(self._llm, {})
                await self._llm.update_weight_version(str(self._version))
                await self._check_rows(self._llm)
        except TimeoutError as error:
            raise EngineError(
                f"expected vLLM to be ready within {deadline_s:g} s, found it still starting"
            ) from error
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"vLLM did not start on {self._spec.model_path}: {error}") from error

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """Continue `prompt`; the stop token is part of the completion.

        Raises EngineError when vLLM is dead or broken, EpisodeError for a prompt that is too long.
        """
        room = self._spec.model.max_model_len - len(prompt.token_ids)
        if room < 1:
            raise EpisodeError(
                f"expected a prompt of fewer tokens than model.max_model_len, "
                f"{self._spec.model.max_model_len}, found {len(prompt.token_ids)}"
            )
        clock = asyncio.get_running_loop().time
        arrived = clock()
        async with self._loading:  # a request must not carry the salt of a replaced version
            llm = self._live()
            started = clock()
            salt = f"policy-{self._sender}-{self._version}"
            tokens = tokens_input(list(prompt.token_ids), cache_salt=salt)
        try:
            stream = llm.generate(
                tokens,
                self._sampling(params, room),
                prompt.request_id,
                lora_request=self._adapter,
            )
            outputs = [output.outputs[0] async for output in stream]
        except EngineDeadError as error:
            self._broken = self._broken or "its process died"
            raise EngineError(f"vLLM cannot go on: {self._broken}") from error
        except (EngineGenerateError, ValueError) as error:
            raise EngineError(
                f"vLLM failed request {prompt.request_id}: {error.__cause__ or error}"
            ) from error
        return _completion(outputs[-1], started - arrived)

    async def load_weights(self, manifest: WeightManifest) -> None:
        """Swap the weights between two scheduler steps; requests in flight continue with them.

        Raises WeightSyncError. If the manifest was refused, the old weights stay in use. If the
        swap itself failed or missed `load_timeout_s`, every later call raises EngineError.
        """
        async with self._loading:
            llm = self._live()
            self._check(manifest)
            deadline_s = self._spec.engine.load_timeout_s
            try:
                async with asyncio.timeout(deadline_s), self._swap():
                    await self._transfer(llm, manifest)
            except TimeoutError as error:
                raise WeightSyncError(
                    f"expected version {manifest.version} to be loaded within {deadline_s:g} s, "
                    "found it still loading"
                ) from error

    async def ping(self) -> None:
        """Ask the engine core something that it answers between two steps. Raises EngineError."""
        llm = self._live()
        try:
            await llm.check_health()
            await llm.is_sleeping()
        except EngineDeadError as error:
            self._broken = self._broken or "its process died"
            raise EngineError(f"vLLM cannot go on: {self._broken}") from error

    async def pause(self) -> None:
        await self._live().pause_generation(mode="keep", clear_cache=False)
        self._paused = True

    async def resume(self) -> None:
        await self._live().resume_generation()
        self._paused = False

    async def close(self) -> None:
        """Stop vLLM's processes; requests in flight fail."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # before the core ends, or it would report the core as dead
        await asyncio.to_thread(llm.shutdown, _CLOSE_TIMEOUT_S)

    async def _check_rows(self, llm: AsyncLLM) -> None:
        if _replaces_linear(self._spec):
            varying = [name for found in await llm.collective_rpc(_CHECK) for name in found]
            if varying:
                raise EngineError(
                    "expected linear layers whose rows do not depend on each other, found others "
                    f"on this CPU: {', '.join(varying[:4])}; set run.deterministic = false"
                )

    def _live(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineError("expected a started engine, found none; call start() first")
        if self._broken:
            raise EngineError(f"vLLM must be replaced: {self._broken}")
        return self._llm

    def _sampling(self, params: SamplingParams, room: int) -> VllmSamplingParams:
        return VllmSamplingParams(
            max_tokens=min(params.max_tokens, room),
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=params.seed,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,  # `stop_token_ids` alone decides, not the model folder
            stop_token_ids=self._stop_token_ids,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _check(self, manifest: WeightManifest) -> None:
        if manifest.sender == self._sender and manifest.version < self._version:
            raise WeightSyncError(
                f"expected a version of at least {self._version}, found {manifest.version}"
            )
        if manifest.transport != self._spec.transport:
            raise WeightSyncError(
                f"expected transport {self._spec.transport}, found {manifest.transport}"
            )
        if manifest.layout.digest != self.layout.digest:
            raise WeightSyncError(
                f"expected the layout {self.layout.digest[:12]} of {self._spec.model_path}, found "
                f"{manifest.layout.digest[:12]}: {_layout_difference(self.layout, manifest.layout)}"
            )

    @contextlib.asynccontextmanager
    async def _swap(self) -> AsyncIterator[None]:
        """Hold the scheduler between two steps; any failure except a refusal breaks the engine."""
        llm = self._live()
        try:
            # what `pause_generation` calls, without the 20 ms that it then sleeps
            await llm.engine_core.pause_scheduler_async("keep", self._clear_cache_on_load)
            yield
        except WeightSyncError:
            await self._resume_unless_paused(llm)
            raise
        except BaseException as error:
            self._broken = f"a weight update stopped half-way: {error!r}"
            llm.output_processor.propagate_error(
                EngineDeadError()
            )  # or requests would wait for ever
            raise
        await self._resume_unless_paused(llm)

    async def _resume_unless_paused(self, llm: AsyncLLM) -> None:
        if not self._paused:
            await llm.resume_generation()

    async def _transfer(self, llm: AsyncLLM, manifest: WeightManifest) -> None:
        adapters = self._adapter is not None
        if not adapters:
            await llm.start_weight_update()
        try:
            if adapters:
                await self._load_adapter(llm, _update_info(manifest))
            else:
                await llm.update_weights(WeightTransferUpdateRequest(_update_info(manifest)))
        except EngineDeadError:
            raise
        except Exception as error:
            if REFUSED in str(error):
                raise WeightSyncError(f"version {manifest.version}: {error}") from error
            raise
        if adapters:
            await llm.update_weight_version(str(manifest.version))
        else:
            await llm.finish_weight_update(str(manifest.version))
        answered = await llm.get_weight_version()
        if answered != str(manifest.version):
            raise RuntimeError(
                f"expected vLLM to answer version {manifest.version}, found {answered}"
            )
        self._version, self._sender = manifest.version, manifest.sender

    async def _load_adapter(self, llm: AsyncLLM, update: dict[str, Any]) -> None:
        lora = self._spec.model.lora
        peft = {
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "target_modules": list(lora.target_modules),
        }
        shapes = [(slot.name, slot.dtype, list(slot.shape)) for slot in self.layout.slots]
        await llm.collective_rpc("load_adapter", args=(peft, shapes, update))


def _replaces_linear(spec: EngineSpec) -> bool:
    return spec.deterministic and spec.device == "cpu"


def _engine_args(spec: EngineSpec) -> AsyncEngineArgs:
    on_cpu = spec.device == "cpu"
    return AsyncEngineArgs(
        model=spec.model_path,
        config_format="hf",
        load_format=LOAD_FORMAT,
        skip_tokenizer_init=True,
        hf_overrides=text_model,
        language_model_only=True,
        dtype=spec.model.dtype,
        seed=spec.seed,
        max_model_len=spec.model.max_model_len,
        max_num_seqs=spec.engine.max_num_seqs,
        # chunked prefill with a per-request seed kills the CPU engine; without it a prompt must fit
        enable_chunked_prefill=False,
        # a cached state of recurrent layers needs chunked prefill
        enable_prefix_caching=False if _has_state(spec) else None,
        max_num_batched_tokens=max(spec.model.max_model_len, 2048),
        gpu_memory_utilization=spec.engine.gpu_memory_utilization,
        kv_cache_memory_bytes=spec.engine.kv_cache_mib << 20 if on_cpu else None,
        block_size=32 if on_cpu else None,
        tensor_parallel_size=spec.engine.tensor_parallel_size,
        distributed_executor_backend="uni" if spec.engine.tensor_parallel_size == 1 else "mp",
        enforce_eager=spec.engine.enforce_eager,
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        enable_lora=spec.model.lora.rank > 0,
        max_loras=1,
        max_lora_rank=_rank_class(spec.model.lora.rank),
        weight_transfer_config=WeightTransferConfig(backend=_BACKENDS[spec.transport]),
        worker_extension_cls=_ROW_INVARIANT
        if _replaces_linear(spec)
        else f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
    )


def _has_state(spec: EngineSpec) -> bool:
    return bool(mixing_layers(read_architecture(Path(spec.model_path))))


def _rank_class(rank: int) -> Any:
    """Return the smallest of the ranks that vLLM has buffers for. Raises EngineError."""
    ranks = get_args(MaxLoRARanks)
    if rank > max(ranks):
        raise EngineError(f"expected model.lora.rank of at most {max(ranks)}, found {rank}")
    return min(size for size in ranks if size >= rank)


def _completion(output: CompletionOutput, queue_s: float) -> Completion:
    if output.finish_reason not in _FINISH:
        raise EngineError(
            f"expected vLLM to finish with stop or length, found {output.finish_reason}"
        )
    if output.weight_versions is None or not isinstance(output.logprobs, FlatLogprobs):
        raise EngineError("expected flat logprobs and weight versions from vLLM, found none")
    return Completion(
        tuple(output.token_ids),
        tuple(output.logprobs.logprobs),
        tuple(VersionSpan(span.start, int(span.version)) for span in output.weight_versions),
        _FINISH[output.finish_reason],
        queue_s,
    )


def _update_info(manifest: WeightManifest) -> dict[str, Any]:
    slots = manifest.layout.slots
    if manifest.transport == "shm":
        return {
            "path": manifest.path,
            "nbytes": manifest.layout.nbytes,
            "checksum": manifest.checksum,
            "slots": [astuple(slot) for slot in slots],
        }
    device_info: dict[str, Any] = {
        "names": [slot.name for slot in slots],
        "dtype_names": [slot.dtype for slot in slots],
        "shapes": [list(slot.shape) for slot in slots],
    }
    if manifest.transport == "cuda_ipc":
        device_info["ipc_handles_pickled"] = manifest.handles
    return device_info


def _layout_difference(expected: WeightLayout, found: WeightLayout) -> str:
    """Name the first tensor in which two layouts differ."""
    ours = {slot.name: asdict(slot) for slot in expected.slots}
    theirs = {slot.name: asdict(slot) for slot in found.slots}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            return f"{name} expected {ours.get(name)}, found {theirs.get(name)}"
    return "same tensors in another order"
