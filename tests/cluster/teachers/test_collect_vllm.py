"""vLLM's own OpenAI server as the teacher, over real HTTP, with real tool servers."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config.run_config import load_config
from cluster.teachers.collect import run_collect
from envs.errors import ConfigError
from learner.pretrained.tiny_model import build_tiny_model
from rollout.chat.template import ChatTemplate
from rollout.episode_schema import from_batch
from rollout.store.run_reader import RunReader

MAX_LEN = 4096

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The tiny model behind vLLM's own OpenAI server: its folder and the server's address."""
    folder = tmp_path_factory.mktemp("models")
    model, server_model = build_tiny_model(folder / "tiny", 0), folder / "longer"
    shutil.copytree(model, server_model)  # the instruction alone is longer than what tiny reads
    config = json.loads((model / "config.json").read_text())
    longer = config | {"max_position_embeddings": MAX_LEN}
    (server_model / "config.json").write_text(json.dumps(longer))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"--model {server_model} --served-model-name tiny --host 127.0.0.1 --port {port} "
        f"--dtype float32 --max-model-len {MAX_LEN} --enforce-eager --block-size 32 "
        "--kv-cache-memory-bytes 67108864 --no-enable-chunked-prefill "
        f"--max-num-batched-tokens {MAX_LEN} --disable-log-stats --disable-uvicorn-access-log"
    )
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
    with subprocess.Popen(
        ["env", "TORCHDYNAMO_DISABLE=1", "VLLM_ENABLE_V1_MULTIPROCESSING=0", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            said = []
            for line in server.stdout:
                said.append(line)
                if "Application startup complete" in line:
                    break
            assert server.poll() is None, "".join(said[-20:])
            yield model, f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def test_vllms_own_server_teaches(served: tuple[Path, str], tmp_path: Path) -> None:
    model, url = served
    settings = [
        "collect.source=endpoint",
        "collect.endpoint.model=tiny",
        f"collect.endpoint.base_url={url}",
        f"model.path={model}",
        "collect.endpoint.max_tokens=40",
        "episode.max_tokens_per_turn=40",
        "collect.concurrency=4",
        "collect.filter.min_answer=0",
        "collect.filter.min_trials=0",
        "collect.filter.max_policy_errors=99",
        "collect.filter.produced=false",
        "tools.isolation.required=seccomp",
    ]
    out = tmp_path / "out"
    report = run_collect(load_config("catalog", [*settings, "collect.tasks=3"]), out, resume=False)
    assert report["episodes"] == 3
    more = load_config("catalog", [*settings, "collect.tasks=5"])
    assert run_collect(more, out, resume=True)["episodes"] == 5
    gone = "collect.endpoint.base_url=http://127.0.0.1:9/v1"
    whole = load_config("catalog", [*settings, "collect.tasks=5", gone])
    assert run_collect(whole, out, resume=True)["episodes"] == 5  # nobody is asked
    reader = RunReader(out)
    episodes = from_batch(reader.batch(reader.episodes()))
    template = ChatTemplate.load(model)
    for episode in episodes:
        opening = [m for m in episode.messages if m.role in ("system", "user")][:2]
        prompt = template.prompt(opening)
        assert list(episode.token_ids_T[: len(prompt)]) == prompt
        assert (episode.source, episode.outcome.counts) == ("tiny", True)
        assert episode.extra["teacher_requests"] >= len(episode.turns) >= 1
    with pytest.raises(ConfigError, match="no model 'other'; it serves: tiny"):
        run_collect(
            load_config("catalog", [*settings, "collect.endpoint.model=other"]),
            tmp_path / "none",
            resume=False,
        )
