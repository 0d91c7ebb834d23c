"""Checkpoint files that would run code are refused before anything loads them."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.errors import LearnerError
from learner.backends.checkpoint_files import check_files


class Scaler:
    """Stands for an object of DeepSpeed's own."""

    def __init__(self) -> None:
        self.scale = 2.0


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self._command,)


STATE: dict[str, Any] = {
    "module": OrderedDict(weight=torch.ones(3)),
    "numbers": np.arange(5, dtype=np.float64),
    "random": np.random.RandomState(0).get_state(),
    "shape": torch.Size([3]),
    "step": 4,
}


def test_what_a_checkpoint_holds_passes(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "plain.pt")
    (tmp_path / "state").mkdir()
    torch.save(STATE | {"scaler": Scaler()}, tmp_path / "state" / "rank_0.pt")
    check_files(tmp_path, [Scaler])
    with pytest.raises(LearnerError, match=r"rank_0\.pt .*Scaler"):
        check_files(tmp_path, [])


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_file_that_runs_code_is_refused_and_runs_nothing(
    tmp_path: Path, legacy: bool, deep: bool
) -> None:
    witness = tmp_path / "ran"
    found: Any = Runs(f"touch {witness}")
    content = STATE | {"optimizer": [{"state": found}] if deep else found}
    path = tmp_path / "rank_0.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(LearnerError, match="could run code"):
        check_files(tmp_path, [Scaler])
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists(), "the file would have run it"


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"PK\x03\x04 not an archive", bytes(4096)])
def test_a_damaged_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rank_0.pt").write_bytes(content)
    with pytest.raises(LearnerError, match="damaged"):
        check_files(tmp_path, [])


@pytest.mark.timeout(30)
def test_a_named_pipe_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rank_0.pt")
    with pytest.raises(LearnerError, match="something else"):
        check_files(tmp_path, [])


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rank_0.pt").write_bytes(pickle.dumps({"module": Scaler()}))
    with pytest.raises(LearnerError):
        check_files(tmp_path, [])
