"""Evidence of an episode: its calls and its session, as if its tools had not been perturbed."""

from collections.abc import Iterable, Sequence

from envs.evidence import MadeCall
from envs.services.adapted import call_of_root, past_adaptation
from envs.services.wrapper import SessionWrapper
from envs.tools import ToolAnswer, ToolCall, ToolSession, ToolSet


class UnperturbedSession(SessionWrapper):
    """A session on `tool_set` that is called in the names of `tool_set.root`."""

    def __init__(self, session: ToolSession, tool_set: ToolSet) -> None:
        super().__init__(session)
        self._tool_set = tool_set

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order, without faults. Raises ToolServerError or DeadlineError."""
        return await super().call([past_adaptation(self._tool_set, call) for call in calls])


def made_calls(
    tool_set: ToolSet, made: Iterable[tuple[ToolCall, ToolAnswer, int]]
) -> tuple[MadeCall, ...]:
    """Return the calls of a policy on `tool_set`, each with its answer and the user's turn, as
    calls of `tool_set.root`; those that do not reach it are left out.
    """
    reached = ((call_of_root(tool_set, call), answer, turn) for call, answer, turn in made)
    return tuple(
        MadeCall(
            name=call.name,
            arguments=call.arguments,
            status=answer.status,
            result=answer.text,
            user_turn=turn,
        )
        for call, answer, turn in reached
        if call is not None
    )
