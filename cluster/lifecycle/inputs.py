"""What a recipe resolves to before anything starts: its model's folder and its environment."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.config.environments import environment_of
from cluster.config.run_config import RunConfig
from cluster.progress import Progress
from envs.errors import MissingError
from envs.tasks import Environment
from envs.tasksets.outside import Outside
from learner.pretrained.resolve import check_folder_context, resolve_model
from rollout.chat.shipped import shipped_names, template_path
from rollout.chat.template import ChatTemplate
from rollout.config import ModelConfig
from rollout.language import check_language, format_of
from rollout.store.run_layout import RunLayout
from rollout.weights.model_folder import weight_files


@dataclass(frozen=True, slots=True)
class RunInputs:
    """A recipe with its model and environment; made once per command and passed down."""

    config: RunConfig
    model: Path
    environment: Environment


def resolve_inputs(config: RunConfig, outside: Outside | None = None) -> RunInputs:
    """Find or build the model of a recipe, and make its environment.

    An environment may ask servers for their tools, or `outside`. The configuration names the format
    of tool calls that `auto` has found. Raises MissingError, ConfigError, DataFileError, and
    InfraError where a server does not answer.
    """
    environment = environment_of(config, outside)  # first: a model may take half a minute to build
    model = find_model(config)
    return RunInputs(_with_tool_format(config, model), model, environment)


def resolve_available(
    config: RunConfig, progress: Progress
) -> tuple[Environment, RunInputs | None, str]:
    """Return the environment of a recipe, and its inputs; or none, and why it has no model.

    Raises as `resolve_inputs` does for anything but a model that is not there.
    """
    progress.phase("making the environment")
    environment = environment_of(config)
    progress.phase(f"preparing the model {config.model.path}")
    try:
        model = find_model(config)
    except MissingError as error:
        return environment, None, str(error)
    return environment, RunInputs(_with_tool_format(config, model), model, environment), ""


def find_model(config: RunConfig) -> Path:
    """Return the folder of the recipe's model, which is built if need be.

    Raises MissingError, also where there are no safetensors, and ConfigError for a context, a chat
    template or a wording that does not fit.
    """
    path = resolve_model(config.model.path, Path(config.run.models_dir), config.run.seed)
    weight_files(path)
    check_folder_context(path, config.model.max_model_len)
    template = ChatTemplate.load(path, config.model)
    check_language(template, format_of(template, config.model.tool_format), config.episode)
    return path.resolve()


def _with_tool_format(config: RunConfig, model: Path) -> RunConfig:
    """Return `config` with the model's own tool format in place of `auto`."""
    found = format_of(ChatTemplate.load(model, config.model), config.model.tool_format).tools.name
    section = config.model.model_copy(update={"tool_format": found})
    return config.model_copy(update={"model": section})


def anywhere(model: ModelConfig) -> ModelConfig:
    """Return a `[model]` section that means the same in a process with another working folder."""
    choice = model.chat_template
    if not choice or choice in shipped_names():
        return model
    return model.model_copy(update={"chat_template": str(template_path(choice).absolute())})


class Environments:
    """Environments of several recipes of one command; equal sections share one."""

    def __init__(self, make: Callable[[RunConfig], Environment] = environment_of) -> None:
        self._make = make
        self._made: dict[str, Environment] = {}

    def of(self, config: RunConfig) -> Environment:
        """Return the environment of `config`. Raises as `environment_of` does."""
        sections = (config.env, config.judge, config.simulated_user)
        key = "".join(section.model_dump_json() for section in sections)
        if key not in self._made:
            self._made[key] = self._make(config)
        return self._made[key]


def with_recording(config: RunConfig, run: Path) -> RunConfig:
    """Return `config` with the folder of its tool record filled in, where `tools.record` is set:
    the one that it names, or else `tool_traffic` in the run directory `run`.
    """
    if not config.tools.record:
        return config
    folder = Path(config.tools.record_dir or RunLayout(run).tool_traffic).resolve()
    tools = config.tools.model_copy(update={"record_dir": str(folder)})
    return config.model_copy(update={"tools": tools})
