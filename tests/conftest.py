"""What every test starts from: no network, one thread per process, GPU tests only with a GPU."""

import gc
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler.loadscope import LoadScopeScheduling

# Set before torch, vLLM or Ray are imported; the processes that tests start inherit them.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRIALRUN_DASHBOARD": "0",  # commands that tests start show their runs to nobody
    "TRIALRUN_KEY_FILE": f"{tempfile.gettempdir()}/trialrun-test-key-{os.getuid()}",
    "DS_ACCELERATOR": "cuda" if Path("/dev/nvidia0").exists() else "cpu",
}.items():
    os.environ.setdefault(_name, _value)

# Imports and hypothesis make many objects that live on: at the default of 700 new objects, garbage
# collection is a seventh of the CPU time of the unit tests.
gc.set_threshold(50_000, 20, 20)

# A shared machine pauses a test for longer than hypothesis' deadline of 200 ms.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


_LONGEST = ("tests/e2e/", "tests/docs/", "tests/cluster/training/")
"""Folders to begin with, so that two processes end at about the same time."""
_SHARING = ("tests/e2e/",)
"""Folders whose files share a pool of vLLM workers, so one process runs all of them."""


_ALL_REAL = re.compile(r"^pytestmark = .*\bmark\.real\b", re.M)


class OneProcessPerFile(LoadScopeScheduling):
    """Distributes files over processes, and the folders in `_SHARING` as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        shared = next((folder for folder in _SHARING if nodeid.startswith(folder)), None)
        return shared or nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneProcessPerFile:
    return OneProcessPerFile(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files of `real` tests only for the unit tests: their imports take seconds."""
    if "not real" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    return True if _ALL_REAL.search(collection_path.read_text(encoding="utf-8")) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests; skip those marked `gpu` where there is no GPU."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONGEST))
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
