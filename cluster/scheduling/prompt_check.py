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


def tasks_with_room(inputs: RunInputs, tasks: Sequence[Task]) -> tuple[Sequence[Task], str]:
    """Return the tasks of an evaluation whose prompt leaves room, and a warning about the others,
    empty if there are none.

    Raises ConfigError, which names them, unless `episode.long_prompts` is `skip`: an evaluation
    that leaves tasks out is comparable only to one that leaves out the same.
    """
    long = _long_prompts(inputs, tasks)
    if not long:
        return tasks, ""
    described = _described(inputs, tasks, long)
    names = {name for name, _ in long}
    kept = [task for task in tasks if task.id not in names]
    if inputs.config.episode.long_prompts != "skip" or not kept:
        raise ConfigError(described)
    return kept, f"{described}. They are left out of the evaluation"


def check_some_prompts(inputs: RunInputs, source: TaskSource) -> str:
    """Return a warning about training tasks that will be skipped; empty if there are none.

    Raises ConfigError if the prompt of none of the tasks leaves room, or if one leaves none and
    `episode.long_prompts` is `refuse`.
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
    refused = config.episode.long_prompts == "refuse"
    if refused or len(long) == len(tasks[:CHECKED]):
        raise ConfigError(described)
    return f"{described}. They are skipped"


def prompt_tokens(inputs: RunInputs, tasks: Sequence[Task]) -> list[tuple[str, int]]:
    """Return the id and the number of tokens of the prompt of each task, of the first `CHECKED`."""
    config = inputs.config
    template = ChatTemplate.load(inputs.model, config.model)
    format = format_of(template, config.model.tool_format)
    languages = (Language(template, format, task, config.episode) for task in tasks[:CHECKED])
    return [
        (task.id, len(language.tokenise(language.opening())))
        for task, language in zip(tasks, languages, strict=False)
    ]


def _long_prompts(inputs: RunInputs, tasks: Sequence[Task]) -> list[tuple[str, int]]:
    """Return the ids of tasks whose prompt fills the context, and their numbers of tokens."""
    most = inputs.config.model.max_model_len
    return [(task, tokens) for task, tokens in prompt_tokens(inputs, tasks) if tokens >= most]


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
