"""The language of one episode: what the policy is told, and what its turns mean."""

from collections.abc import Sequence
from dataclasses import replace

from envs.errors import ConfigError, PolicyError, PolicyErrorKind
from envs.messages import Message, world
from envs.tasks import Task
from envs.tools import SessionPurpose, ToolSpec
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, ToolFormatName
from rollout.formats.turn_format import TurnFormat, choose_format
from rollout.parser import ParsedTurn, parse_turn
from rollout.prompts import make_prompts, tool_schemas, tools_by_template

_TAIL = 16
"""Tokens at the end of a context in which the template may have opened a thought."""


def format_of(template: ChatTemplate, name: ToolFormatName) -> TurnFormat:
    """Return how the model of `template` writes its turns; `name` is `model.tool_format`."""
    return choose_format(name, template.chat_template, template.vocabulary)


def opens_thought(template: ChatTemplate, format: TurnFormat, context: Sequence[int]) -> bool:
    """Whether the template has opened a thought at the end of the ids `context`."""
    if format.thinking is None:
        return False
    return format.opened_by(template.decode(list(context[-_TAIL:])))


def check_language(template: ChatTemplate, format: TurnFormat, config: EpisodeConfig) -> bool:
    """Return whether the chat template lists the tools of an episode.

    Raises ConfigError where it cannot do what `episode.prompt` or `episode.thoughts` asks for.
    """
    if config.thoughts == "drop" and format.thinking is None:
        raise ConfigError(
            "expected a model whose template or vocabulary marks thoughts, as <think> does, with "
            "episode.thoughts = 'drop', found none (the channels of gpt-oss cannot be dropped "
            "here): set episode.thoughts = 'keep'"
        )
    if config.thoughts == "drop" and template.tool_role.startswith("called"):
        raise ConfigError(
            "expected a chat template that takes an earlier turn as text with episode.thoughts = "
            "'drop', found one that shows tool answers only after calls that it writes itself: set "
            "episode.thoughts = 'keep'"
        )
    return tools_by_template(config.prompt, format, renders_tools=template.renders_tools)


class Language:
    """Wording, chat template and format of turns. Raises as `check_language` does."""

    def __init__(
        self, template: ChatTemplate, format: TurnFormat, task: Task, config: EpisodeConfig
    ) -> None:
        self._template = template
        self._format = format
        self._task = task
        self._config = config
        rendered = check_language(template, format, config)
        self.prompts = make_prompts(
            config.prompt, format, wrap_answers=not template.wraps_answers, rendered=rendered
        )
        self._listed = tool_schemas(task.tool_set.tools) if rendered else None
        self._known = task.tool_set
        """The tools of which the policy knows that it may call them."""

    def renewed(self, tools: tuple[ToolSpec, ...]) -> list[Message]:
        """Return what the policy must be told if its tools are now `tools`: one message, or none.
        Its calls are checked against them from now on.
        """
        before = {tool.name: tool for tool in self._known.tools}
        now = {tool.name: tool for tool in tools}
        if before == now:
            return []
        self._known = self._known.model_copy(update={"tools": tools})
        new = [tool for name, tool in now.items() if before.get(name) != tool]
        return [self.prompts.tools_changed(new, [name for name in before if name not in now])]

    def opening(self) -> list[Message]:
        """Return the messages at the start of the episode."""
        config = self._config
        self._known = self._task.tool_set
        return self.prompts.opening(self._task, config.mode, config.trial.calls)

    def tokenise(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation that starts with the opening, up to the next turn."""
        return self._template.prompt(messages, self._listed)

    def tokenise_after(
        self, conversation: Sequence[Message], messages: Sequence[Message]
    ) -> list[int]:
        """Return the ids of a conversation that starts with the opening and ends in `messages`."""
        return self.tokenise([*conversation, *messages])

    def parse(
        self, text: str, finish: str, stage: SessionPurpose, context: Sequence[int]
    ) -> ParsedTurn:
        """Return the actions of a turn that continued the ids `context`. Raises PolicyError."""
        limit, tools = self._config.max_calls_per_turn, self._known
        try:
            parsed = parse_turn(
                text,
                tools,
                limit,
                self._format,
                opened=opens_thought(self._template, self._format, context),
            )
        except PolicyError as error:
            if finish == "length" and error.kind is PolicyErrorKind.UNCLOSED_TAG:
                raise PolicyError(
                    PolicyErrorKind.TOO_LONG, "the turn was cut at its token limit"
                ) from None
            raise
        free = self._config.mode == "free"
        useful = parsed.calls or (
            parsed.experience is not None
            if stage == "trial"
            else parsed.answer is not None or (parsed.back_to_trial and free)
        )
        if not useful:
            kind = PolicyErrorKind.TOO_LONG if finish == "length" else PolicyErrorKind.NO_ACTION
            raise PolicyError(kind, self._expected(stage, parsed))
        return parsed

    def without_thoughts(
        self, messages: Sequence[Message], context: Sequence[int]
    ) -> list[Message] | None:
        """Return a conversation, whose last message is a turn after the ids `context`, with that
        turn's thoughts left out; None if it has none, or if they are to be kept.
        """
        thinking, turn = self._format.thinking, messages[-1]
        if self._config.thoughts == "keep" or thinking is None:
            return None
        opened = opens_thought(self._template, self._format, context)
        spoken = thinking.spoken(turn.content, self._format.tools, opened=opened).text
        if spoken == turn.content:
            return None
        return [*messages[:-1], replace(turn, content=spoken.strip())]

    def _expected(self, stage: SessionPurpose, parsed: ParsedTurn) -> str:
        expected = self.prompts.expected(stage, self._known)
        if not parsed.open_thought:
            return expected
        return (
            f"the thought never ended, and nothing in a thought is done: "
            f"{world(self._format.end_of_thought)}, then act; {expected}"
        )
