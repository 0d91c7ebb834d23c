"""Environment variables that a process needs before it imports torch or vLLM."""


def engine_environment(*, gpu: bool, deterministic: bool = False) -> dict[str, str]:
    """Return the variables for a process that hosts a VllmEngine; its engine core inherits them.

    `VLLM_CPU_KVCACHE_SPACE` must stay unset: it would override `engine.kv_cache_mib`.
    """
    shared = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if gpu:
        # CUDA IPC handles reach the worker pickled; they come from this run's own learner only.
        shared["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        return shared | ({"VLLM_BATCH_INVARIANT": "1"} if deterministic else {})
    return shared | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker stays in the engine core process
        "OMP_NUM_THREADS": "1",  # unset, several engines on one machine run ten times slower
        "TORCHDYNAMO_DISABLE": "1",
    }
