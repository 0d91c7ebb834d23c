"""Tools that answer from a record: adapted and composite sets on top of one replaying service."""

from envs.services.adapted import AdaptedTools
from envs.services.composite import CompositeTools
from envs.tools import SessionPurpose, ToolService, ToolSession, ToolSet


class ReplayedTools:
    """ToolService that replays sets of every kind through `record`, the client of a replay server.

    What was recorded are sessions on code and on endpoints; adaptations and sets with parts are
    put together from these again, without waiting for injected latency.
    """

    def __init__(self, record: ToolService) -> None:
        self._record = record
        self._adapted = AdaptedTools(self, sleep=_do_not_wait)
        self._composite = CompositeTools(self)

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ToolSession:
        """Open the next recorded session like this. Raises ToolServerError or DeadlineError."""
        if tool_set.adaptation is not None:
            service: ToolService = self._adapted
        else:
            service = self._composite if tool_set.parts else self._record
        return await service.open_session(tool_set, seed, purpose, episode)

    async def close(self) -> None:
        await self._record.close()


async def _do_not_wait(seconds: float) -> None:
    """Injected latency is part of the recorded times: it is not waited for again."""
    del seconds
