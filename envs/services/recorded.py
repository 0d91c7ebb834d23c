"""Recording of tools that no tool server runs: HTTP APIs, MCP servers, OpenEnv environments."""

import secrets
from collections.abc import Sequence

from envs.config import ToolServerConfig
from envs.server.traffic import TrafficRecorder, recorder_for
from envs.server.wire import OpenItem, encoded_call
from envs.services.wrapper import SessionWrapper
from envs.tools import SessionPurpose, ToolAnswer, ToolCall, ToolService, ToolSession, ToolSet


class RecordingTools:
    """ToolService that records sessions on endpoints if `tools.record` is set.

    Sessions on Python code pass through, because their tool server records them. The replay server
    replays both kinds of record. Of the endpoint itself nothing is recorded, because it may hold
    secrets.
    """

    def __init__(self, inner: ToolService, config: ToolServerConfig) -> None:
        self._inner = inner
        self._config = config
        self._recorder: TrafficRecorder | None = None

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ToolSession:
        """Open a session.

        Raises ToolServerError or DeadlineError; StoreError if the record cannot be created.
        """
        session = await self._inner.open_session(tool_set, seed, purpose, episode)
        if tool_set.endpoint is None or not self._config.record:
            return session
        if self._recorder is None:
            self._recorder = recorder_for(self._config)
            assert self._recorder is not None, "recording is on"
        item = OpenItem(digest=tool_set.digest, seed=seed, purpose=purpose, episode=episode)
        recorded = _RecordedSession(session, self._recorder)
        self._recorder.opened(recorded.name, item, tool_set)
        return recorded

    async def close(self) -> None:
        await self._inner.close()
        if self._recorder is not None:
            self._recorder.close()


class _RecordedSession(SessionWrapper):
    """A session whose calls are recorded."""

    def __init__(self, session: ToolSession, recorder: TrafficRecorder) -> None:
        super().__init__(session)
        self._recorder = recorder
        self.name = secrets.token_hex(12)

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order; one answer per call. Raises ToolServerError or DeadlineError."""
        answers = await super().call(calls)
        for call, answer in zip(calls, answers, strict=True):
            self._recorder.answered(self.name, encoded_call(call), answer)
        return answers

    async def close(self) -> None:
        self._recorder.closed(self.name)
        await super().close()
