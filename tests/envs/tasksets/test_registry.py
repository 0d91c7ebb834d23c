"""The registry: a new task set is one folder and one line, and `[env]` is read by its name."""

import pytest
from pydantic import JsonValue, ValidationError

from cluster.scheduling.task_stream import TaskStream
from envs.config import EnvConfig, IsolationConfig, ToolServerConfig
from envs.endpoints import Endpoint
from envs.errors import ConfigError
from envs.perturbation.perturb import PerturbedEnvironment
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.tasks import Environment
from envs.tasksets.catalog.config import CatalogEnvConfig
from envs.tasksets.outside import Outside
from envs.tasksets.registry import TASK_SETS, create_environment, every_key, read_section
from envs.tasksets.toolhop.config import ToolHopEnvConfig
from envs.tools import ToolSet
from learner.pretrained.tiny_model import build_tokenizer
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Lease, Outcome, RolloutKind
from rollout.runner import EpisodeRunner, Identity
from tests.envs.tasksets.toy_set import WITH_TOY, ToyEnvConfig

TOY: dict[str, JsonValue] = {"name": "toy", "must": 1, "toy": {"largest": 3}}


def no_servers(endpoint: Endpoint) -> ToolSet:
    raise AssertionError(endpoint)


NOTHING = Outside(list_tools=no_servers)


def made(tree: dict[str, JsonValue]) -> Environment:
    config = read_section(tree, WITH_TOY)
    assert isinstance(config, EnvConfig)
    return create_environment(config, NOTHING, WITH_TOY)


@pytest.mark.parametrize("name", TASK_SETS)
def test_a_line_of_the_registry_agrees_with_its_folder(name: str) -> None:
    config = TASK_SETS[name].section(name=name)
    environment = create_environment(config, NOTHING)
    assert config.name == environment.name == name
    assert environment.endless == (environment.ceiling is not None) == (name == "catalog")
    with pytest.raises(ValidationError, match=f"expected env.name = '{name}'"):
        TASK_SETS[name].section(name="toy")


def test_a_new_task_set_is_read_by_its_name() -> None:
    config = read_section(TOY, WITH_TOY)
    assert isinstance(config, ToyEnvConfig)
    assert (config.toy.largest, config.must, config.perturbation) == (3, 1, "clean")
    assert {"toy", "must", "catalog", "path", "perturbation"} <= every_key(
        WITH_TOY
    ).model_fields.keys()
    with pytest.raises(ValidationError, match="'catalog', 'toolhop', 'file' or a class"):
        read_section(TOY)


def test_a_new_task_set_gives_tasks_without_end() -> None:
    environment = made(TOY)
    stream = TaskStream(environment, "train", 7)
    assert stream[1_000] == TaskStream(made(TOY), "train", 7)[1_000]
    assert len({stream[index].id for index in range(600)}) == 600
    with pytest.raises(ConfigError, match="'toy' generates tasks without end"):
        environment.all_tasks()
    assert environment.ceiling is None


async def test_its_teacher_runs_episodes_on_its_tools() -> None:
    environment = made(TOY)
    teacher, task = environment.teacher("direct"), environment.tasks("train", 0, 1)[0]
    tools = ToolServerConfig(isolation=IsolationConfig(required="seccomp"))
    template = ChatTemplate(build_tokenizer())
    with ToolServerProcess(tools) as server:
        client = ToolClient(server.address, tools)
        engine = ScriptedEngine(teacher.reply, template)
        runner = EpisodeRunner(
            engine, client, template, Identity(worker="unit", max_model_len=8_192)
        )
        lease = Lease(
            run="run",
            episode="e0",
            kind=RolloutKind.TRAIN,
            group="g0",
            group_number=0,
            task=task.id,
            sample_index=0,
            attempt=0,
            seed=7,
        )
        episode = await runner.run_episode(lease, task, EpisodeConfig(mode="direct"))
        await client.close()
    assert (episode.outcome, episode.reward) == (Outcome.ANSWERED, 1.0)


def test_without_a_teacher_or_with_perturbed_tools_there_is_a_clear_error() -> None:
    file = made({"name": "file"})
    with pytest.raises(ConfigError, match=r"'file' has no scripted teacher.*--source endpoint"):
        file.teacher("trial")
    with pytest.raises(ConfigError, match="'file' has no scripted teacher"):
        PerturbedEnvironment(file, "slight", 0).teacher("trial")
    perturbed = PerturbedEnvironment(made(TOY), "slight", 0)
    with pytest.raises(ConfigError, match="perturbation = 'slight'"):
        perturbed.teacher("trial")
    assert perturbed.endless and perturbed.ceiling is None


def test_keys_of_other_task_sets_are_checked_and_ignored() -> None:
    stored = {
        "name": "toolhop",
        "path": "a.json",
        "heldout_percent": 5,
        "catalog": {"tools": 7},
        "toy": {"largest": 2},
        "perturbation": "slight",
        "perturbation_seed": 4,
    }
    expected = ToolHopEnvConfig(
        path="a.json", heldout_percent=5, perturbation="slight", perturbation_seed=4
    )
    assert read_section(stored, WITH_TOY) == expected
    assert read_section({**stored, "path": ""}, WITH_TOY) == expected.model_copy(
        update={"path": ""}
    ), "a key that several sets have is the selected one's to judge"
    assert read_section({"path": "abc"}) == CatalogEnvConfig()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"pth": ""}, "pth\n.*not permitted"),
        ({"name": "toolhop", "pth": ""}, "pth\n.*not permitted"),
        ({"name": "toolhop", "catalog": {"tolls": 7}}, r"catalog.tolls\n.*not permitted"),
        ({"name": "toolhop", "catalog": {"tools": 70}}, r"catalog.tools\n.*less than"),
        ({"name": "toy"}, r"must\n.*required"),
        ({"name": "toy", "must": 1, "path": ""}, r"path\n.*at least 3"),
        ({"name": 3}, r"name\n.*'file', 'toy' or a class"),
    ],
)
def test_wrong_keys_and_values_are_errors(tree: dict[str, JsonValue], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read_section(tree, WITH_TOY)
