"""The example of a custom loss: it runs as its docstring says, and a recipe can name it."""

import os
import re
import subprocess
import sys

import pytest

from learner.config import LearnerConfig
from learner.objective.custom import load_custom_functions
from tests.project_tree import ROOT

EXAMPLE = ROOT / "examples" / "custom_loss.py"


def test_the_example_checks_itself() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ok"


def test_the_name_in_its_docstring_is_that_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    names = re.findall(r"--set learner\.loss=(\S+)", EXAMPLE.read_text())
    assert names == ["examples.custom_loss:spo_loss"]
    loss = load_custom_functions(LearnerConfig(loss=names[0])).loss
    assert loss is not None and loss.__name__ == "spo_loss"


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60
