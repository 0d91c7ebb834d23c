"""A session that wraps another one, for services that extend calls or the close."""

from collections.abc import Sequence

from envs.tools import ToolAnswer, ToolCall, ToolSession


class SessionWrapper:
    """A ToolSession that delegates everything to another one."""

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
        """End the session; does not raise if it has ended already."""
        await self._session.close()
