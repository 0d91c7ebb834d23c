"""Users who go on after an answer: with messages from a list, or simulated by a model."""

from dataclasses import dataclass

from pydantic import JsonValue

from envs.errors import ScoringError
from envs.tasks import Conversation
from envs.tools import AnswerStatus, ToolCall, ToolSet

STOP = "###STOP###"
PROMPT = """You play a user who talks to an assistant. Stay in this role, and write only what the \
user says next, in one or two sentences. Do not tell everything at once, and make up nothing that \
the instructions do not say. When all that you wanted is done, or the assistant says that it \
cannot be done, write {stop} and nothing else.

Your instructions:
{instructions}"""


@dataclass(frozen=True, slots=True)
class ScriptedUser:
    """Says the messages of a list, one after each answer."""

    messages: tuple[str, ...]

    async def say(self, conversation: Conversation) -> str | None:
        """Return the next message, None after the last one."""
        said = len(conversation.said)
        return self.messages[said] if said < len(self.messages) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedUser:
    """A chat model that follows `instructions`, which the policy never sees.

    It speaks at most `max_messages` times after the question, and ends with `STOP`.
    """

    chat: ToolSet
    instructions: str
    max_messages: int
    prompt: str = PROMPT

    async def say(self, conversation: Conversation) -> str | None:
        """Return the next message, None at the end. Raises InfraError, DeadlineError."""
        if len(conversation.said) >= self.max_messages:
            return None
        system = self.prompt.replace("{instructions}", self.instructions).replace("{stop}", STOP)
        # From the user's side the assistant is the one who asks.
        messages = [_message("system", system), _message("user", "How can I help you?")]
        spoken = (conversation.question, *conversation.said)
        for own, answer in zip(spoken, conversation.answers, strict=True):
            messages += [_message("assistant", own), _message("user", answer or "(nothing)")]
        reply = await self._ask(conversation, messages)
        before, stopped, _ = reply.rpartition("</think>")[2].partition(STOP)
        if not stopped and not before.strip():
            raise ScoringError(f"expected words of the simulated user, found {reply[:80]!r}")
        return None if stopped else before.strip()

    async def _ask(self, conversation: Conversation, messages: list[JsonValue]) -> str:
        session = await conversation.tools.open_session(
            self.chat, conversation.seed, "scoring", conversation.episode
        )
        arguments: dict[str, JsonValue] = {
            "messages": messages,
            "seed": conversation.seed & 0x7FFFFFFF,
        }
        try:
            call = ToolCall(name=self.chat.tools[0].name, arguments=arguments)
            [answer] = await session.call([call])
        finally:
            await session.close()
        if answer.status is not AnswerStatus.OK:
            raise ScoringError(f"the simulated user did not answer: {answer.text}")
        return answer.text


def _message(role: str, content: str) -> JsonValue:
    return {"role": role, "content": content}
