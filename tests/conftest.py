"""What every test starts from: no network, one thread per process, GPU tests only with a GPU."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Set before torch, vLLM or Ray are imported; the processes that tests start inherit them.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DS_ACCELERATOR": "cuda" if Path("/dev/nvidia0").exists() else "cpu",
}.items():
    os.environ.setdefault(_name, _value)

# A shared machine pauses a test for longer than hypothesis' deadline of 200 ms.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no GPU."""
    if Path("/dev/nvidia0").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: there is no /dev/nvidia0"))


@pytest.fixture(scope="session")
def interop_bin() -> Path:
    """Folder of the foreign programs (`python`, `mcp-server-time`, ...) of `make interop`.

    `verifiers`, which needs another release of MCP, has `../verifiers/bin/python`.
    """
    folder = Path(__file__).parents[1] / ".venv-interop" / "bin"
    if not (folder.parent / ".trialrun-installed").exists():
        pytest.fail("the foreign programs are not installed: type 'make interop'", pytrace=False)
    return folder
