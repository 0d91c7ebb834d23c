"""Sessions on several tool sets at once: each call goes to the set that has its tool."""

import asyncio
import json
from collections.abc import Container, Sequence

from envs.endpoints import OpenEnvEndpoint
from envs.tools import (
    REWARD_CALL,
    STATE_CALL,
    AnswerStatus,
    SessionPurpose,
    ToolAnswer,
    ToolCall,
    ToolService,
    ToolSession,
    ToolSet,
)


class CompositeTools:
    """ToolService for tool sets with parts, on top of `inner`."""

    def __init__(self, inner: ToolService) -> None:
        self._inner = inner

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ToolSession:
        """Open a session on every part. Raises ToolServerError or DeadlineError."""
        opened: list[ToolSession] = []
        try:
            for part in tool_set.parts:
                opened.append(await self._inner.open_session(part, seed, purpose, episode))
        except BaseException:
            for session in opened:
                await session.close()
            raise
        return CompositeSession(tool_set, opened)

    async def close(self) -> None:
        """Do nothing: the owner of `inner` closes it."""


class CompositeSession:
    """One session on each part; calls run in order, whichever part they go to."""

    def __init__(self, tool_set: ToolSet, sessions: Sequence[ToolSession]) -> None:
        self._sessions = tuple(sessions)
        self._offered = [part.tools for part in tool_set.parts]
        self._of_tool: dict[str, int] = {}
        self._find_tools()
        self._with_state = [
            session
            for part, session in zip(tool_set.parts, sessions, strict=True)
            if part.sandboxed or isinstance(part.endpoint, OpenEnvEndpoint)
        ]
        self._worlds = [
            session
            for part, session in zip(tool_set.parts, sessions, strict=True)
            if isinstance(part.endpoint, OpenEnvEndpoint) and part.endpoint.world
        ]

    @property
    def id(self) -> str:
        return "+".join(session.id for session in self._sessions)

    @property
    def isolation(self) -> str:
        """What each part achieves, each kind once."""
        return ", ".join(dict.fromkeys(session.isolation for session in self._sessions))

    @property
    def server(self) -> str:
        return ", ".join(dict.fromkeys(session.server for session in self._sessions))

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order; one answer per call. Raises ToolServerError or DeadlineError."""
        answers: list[ToolAnswer] = []
        for call in calls:
            if call.name == STATE_CALL:
                answers.append(await self._state(call))
            elif call.name == REWARD_CALL:
                answers.append(await self._rewards(call))
            elif call.name in self._of_tool:
                answers.append(await self._answer(self._of_tool[call.name], call))
            else:
                text = f"no tool {call.name!r}; tools are: {', '.join(self._of_tool)}"
                answers.append(ToolAnswer(status=AnswerStatus.TOOL_ERROR, text=text, seconds=0.0))
        return answers

    async def close(self) -> None:
        """End the session on every part."""
        await asyncio.gather(*(session.close() for session in self._sessions))

    def _find_tools(self) -> None:
        """Note which part has each tool; of one name, the first."""
        self._of_tool = {}
        for number, tools in enumerate(self._offered):
            for tool in tools:
                self._of_tool.setdefault(tool.name, number)

    async def _answer(self, part: int, call: ToolCall) -> ToolAnswer:
        [answer] = await self._sessions[part].call([call])
        if answer.tools is None:
            return answer
        self._offered[part] = answer.tools
        self._find_tools()
        every = tuple(tool for tools in self._offered for tool in tools)
        return answer.model_copy(update={"tools": every})

    async def _rewards(self, call: ToolCall) -> ToolAnswer:
        """Return the rewards of the part that is a world."""
        for session in self._worlds:
            return (await session.call([call]))[0]
        text = "no source of these tools gives rewards"
        return ToolAnswer(status=AnswerStatus.TOOL_ERROR, text=text, seconds=0.0)

    async def _state(self, call: ToolCall) -> ToolAnswer:
        """Return the states of the parts that have one, as one object; of equal names, the later
        ones get a number.
        """
        merged: dict[str, object] = {}
        seconds = 0.0
        for session in self._with_state:
            [answer] = await session.call([call])
            if answer.status is not AnswerStatus.OK or answer.truncated:
                return answer
            try:
                found = json.loads(answer.text)
            except RecursionError:
                return answer.model_copy(
                    update={"status": AnswerStatus.TOOL_ERROR, "text": "it is nested too deep"}
                )
            for name, state in found.items():
                merged[_free(name, merged)] = state
            seconds += answer.seconds
        text = json.dumps(merged, ensure_ascii=False, sort_keys=True)
        return ToolAnswer(status=AnswerStatus.OK, text=text, seconds=seconds)


def _free(name: str, taken: Container[str]) -> str:
    number = 1
    while (free := f"{name}_{number}" if number > 1 else name) in taken:
        number += 1
    return free
