"""A session around another one, for services that add something to calls or to the end."""

from collections.abc import Sequence

from envs.tools import ToolAnswer, ToolCall, ToolSession


class SessionWrapper:
    """A ToolSession that passes everything on; see that Protocol."""

    def __init__(self, session: ToolSession) -> None:
        self._session = session

    @property
    def id(self) -> str:
        return self._session.id

    @property
    def isolation(self) -> str:
        return self._session.isolation

    @property
    def server(self) -> str:
        return self._session.server

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order; one answer per call. Raises ToolServerError or DeadlineError."""
        return await self._session.call(calls)

    async def close(self) -> None:
        """End the session; never raises for a session that is already gone."""
        await self._session.close()
