"""Before a run: whether the prompts of its tasks leave room to answer."""

from collections.abc import Sequence

from cluster.lifecycle.inputs import RunInputs
from cluster.scheduling.task_sources import TaskSource
from envs.errors import ConfigError
from envs.tasks import Task
from rollout.chat.template import ChatTemplate
from rollout.language import Language, format_of

CHECKED = 4_096
"""Tasks of a finite set that are looked at; what is longer beyond them is found as it comes."""
SAMPLED = 64
"""Tasks that are looked at if they are generated without end."""
_SHOWN = 3


def check_all_prompts(inputs: RunInputs, tasks: Sequence[Task]) -> None:
    """Raise ConfigError, which names them, if the prompt of any of `tasks` leaves no room.

    For evaluations: one that leaves tasks out would not be comparable.
    """
    long = _long_prompts(inputs, tasks)
    if long:
        raise ConfigError(_described(inputs, tasks, long))


def check_some_prompts(inputs: RunInputs, source: TaskSource) -> str:
    """Return a warning about training tasks that will be skipped; empty if there are none.

    Raises ConfigError if the prompt of none of the tasks leaves room.
    """
    environment, config = inputs.environment, inputs.config
    if environment.endless:
        tasks: Sequence[Task] = [source[number] for number in range(SAMPLED)]
    else:
        tasks = environment.tasks("train", config.run.seed, None)
    long = _long_prompts(inputs, tasks)
    if not long:
        return ""
    described = _described(inputs, tasks, long)
    if len(long) == len(tasks[:CHECKED]):
        raise ConfigError(described)
    return f"{described}. They are skipped"


def _long_prompts(inputs: RunInputs, tasks: Sequence[Task]) -> list[tuple[str, int]]:
    """Return the ids of tasks whose prompt fills the context, and their numbers of tokens."""
    config = inputs.config
    template = ChatTemplate.load(inputs.model, config.model)
    format = format_of(template, config.model.tool_format)
    languages = (Language(template, format, task, config.episode) for task in tasks[:CHECKED])
    counted = [
        (task.id, len(language.tokenise(language.opening())))
        for task, language in zip(tasks, languages, strict=False)
    ]
    return [(task, tokens) for task, tokens in counted if tokens >= config.model.max_model_len]


def _described(inputs: RunInputs, tasks: Sequence[Task], long: Sequence[tuple[str, int]]) -> str:
    names = ", ".join(f"{task}: {tokens} tokens" for task, tokens in long[:_SHOWN])
    more = ", ..." if len(long) > _SHOWN else ""
    first = "the first " if inputs.environment.endless or len(tasks) > CHECKED else ""
    return (
        f"the prompts of {len(long)} of {first}{len(tasks[:CHECKED])} tasks leave no room to "
        f"answer in model.max_model_len = {inputs.config.model.max_model_len} ({names}{more}): "
        f"raise it to more than {max(tokens for _, tokens in long)}, or shorten these tasks or "
        "their tools, or leave them out"
    )
