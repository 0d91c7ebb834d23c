"""Environments from outside of the project: by path and by entry point, with their options."""

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from envs.config import EnvConfig, JudgeConfig
from envs.errors import ConfigError
from envs.perturbation.perturb import PerturbedEnvironment
from envs.tasks import Environment
from envs.tasksets.outside import Outside
from envs.tasksets.registry import create_environment, read_section
from tests.envs.tasksets.answers_of import score_of

MODULE = """
from envs.scoring.answer_text import NumberScorer
from envs.sources.python import tool_set_of_functions
from envs.tasks import Environment, Task

TOOLS = tool_set_of_functions("def add(a: int, b: int) -> int: return a + b")

class Sums(Environment):
    name = "sums"

    def __init__(self, largest: int = 9, *, outside=None):
        self.largest, self.judge = largest, outside.judge.model

    def tasks(self, split, seed, count):
        return [
            Task(
                id=f"sums-{n}",
                environment=self.name,
                split=split,
                question=f"{n} + {self.largest}?",
                tool_set=TOOLS,
                scorer=NumberScorer(float(n + self.largest), 1e-6),
            )
            for n in range(count or 3)
        ]

class Nameless(Environment):
    def tasks(self, split, seed, count): return []

def no_class(): ...
"""
WORLD = Outside(list_tools=lambda place: pytest.fail(), judge=JudgeConfig(model="j"))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module on the path, and a distribution that names its environment as `sums`."""
    (tmp_path / "own_sums.py").write_text(MODULE)
    about = tmp_path / "own_sums-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-sums\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[trialrun.environments]\nsums = own_sums:Sums\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def made(**tree: object) -> Environment:
    config = read_section(tree)
    assert isinstance(config, EnvConfig)
    return create_environment(config, WORLD)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["own_sums:Sums", "sums"])
def test_an_environment_of_ones_own(name: str) -> None:
    environment = made(name=name, options={"largest": 4}, heldout_percent=20)
    assert (environment.name, environment.endless) == ("sums", False)
    assert vars(environment) == {"largest": 4, "judge": "j"}
    task = pickle.loads(pickle.dumps(environment.tasks("train", 0, 2)[1]))
    assert score_of(task, "1 + 4 = 5") == 1.0
    assert len(environment.all_tasks()) == 9
    harder = PerturbedEnvironment(environment, "medium", 0).tasks("train", 0, 1)
    assert harder[0].tool_set.root == task.tool_set


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_sums:no_class", "expected a subclass"),
        ("own_sums:Missing", "found module 'own_sums' has no attribute"),
        ("no_such_module:A", "No module named"),
        ("own_sums:Nameless", "expected a `name`"),
    ],
)
def test_what_is_no_environment_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(name=name)


@pytest.mark.usefixtures("installed")
def test_wrong_options_and_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"env\.options.*unexpected keyword argument 'bigest'"):
        made(name="sums", options={"bigest": 3})
    with pytest.raises(ValidationError, match="'sums' or a class as 'module:Class'"):
        read_section({"name": "sum"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        read_section({"name": "sums", "largest": 3})


def test_a_stored_name_is_read_without_its_module() -> None:
    section = read_section({"name": "gone.away:Env", "options": {"a": 1}})
    assert isinstance(section, EnvConfig)
    assert section.name == "gone.away:Env"
