from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.create(tmp_path / "run", "", RunInfo(run="r", seed=0, created_at=0.0)) as run:
        run.layout.requests.mkdir()
        yield run
