"""The tools of one episode: which phase acts on which state."""

from collections.abc import Sequence
from dataclasses import dataclass

from envs.errors import SandboxError
from envs.tools import (
    AnswerStatus,
    SessionPurpose,
    ToolAnswer,
    ToolCall,
    ToolService,
    ToolSession,
    ToolSet,
)
from rollout.config import TrialSessions


@dataclass(frozen=True, slots=True)
class _Executed:
    """One execution call and what it answered; a replay should answer the same."""

    call: ToolCall
    answer: ToolAnswer


class PhaseTools:
    """Opens, calls, replays and closes the sessions of one episode.

    Isolated trials act on a session of their own, in the state that the execution calls so far have
    led to, and it is thrown away when the trial phase ends. Shared trials act on the one session
    that execution acts on. Not covered: tools that keep state outside of their session (a real HTTP
    API) see the replayed calls a second time.
    """

    def __init__(
        self, service: ToolService, tool_set: ToolSet, seed: int, sharing: TrialSessions
    ) -> None:
        self._service = service
        self._tool_set = tool_set
        self._seed = seed
        self._sharing = sharing
        self._sessions: dict[SessionPurpose, ToolSession] = {}
        self._executed: list[_Executed] = []
        self._isolations: dict[str, None] = {}
        self._servers: dict[str, None] = {}
        self.replayed_calls = 0
        self.replay_differences = 0
        """Replayed calls that did not answer what they answered before."""

    @property
    def isolation(self) -> str:
        """Achieved isolation of every session, each kind once."""
        return ", ".join(self._isolations)

    @property
    def servers(self) -> str:
        """Names of the servers that the sessions were on, in the order of their first use."""
        return ", ".join(self._servers)

    async def call(self, phase: SessionPurpose, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` for `phase`, in order. Raises ToolServerError, SandboxError, DeadlineError.

        An answer INFRA_ERROR is the caller's business.
        """
        answers = await (await self._session(phase)).call(calls)
        if phase == "execution":
            self._remember(calls, answers)
        return answers

    async def catch_up(self) -> None:
        """Bring the trial session to the state of execution, where it is not.

        Raises ToolServerError, SandboxError (a replayed call failed on the world's account) or
        DeadlineError.
        """
        if self._sharing == "shared" or "trial" in self._sessions or not self._executed:
            return
        session = await self._session("trial")
        answers = await session.call([executed.call for executed in self._executed])
        for executed, answer in zip(self._executed, answers, strict=True):
            if answer.status is AnswerStatus.INFRA_ERROR:
                raise SandboxError(f"the replay of {executed.call.name} failed: {answer.text}")
            before = (executed.answer.status, executed.answer.text)
            self.replay_differences += (answer.status, answer.text) != before
        self.replayed_calls += len(answers)

    async def end_trial(self) -> None:
        """Throw the trial's session away."""
        session = self._sessions.pop("trial", None)
        if session is not None:
            await session.close()

    async def close(self) -> None:
        """End all sessions."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            await session.close()

    def _remember(self, calls: Sequence[ToolCall], answers: Sequence[ToolAnswer]) -> None:
        """Keep what a replay needs; a sandbox that stopped a tool began again from the start."""
        for call, answer in zip(calls, answers, strict=True):
            if answer.status is AnswerStatus.TIMEOUT and _begins_again(self._tool_set):
                self._executed.clear()
            else:
                self._executed.append(_Executed(call, answer))

    async def _session(self, phase: SessionPurpose) -> ToolSession:
        purpose = "execution" if self._sharing == "shared" else phase
        session = self._sessions.get(purpose)
        if session is None:
            session = await self._service.open(self._tool_set, self._seed, purpose)
            self._sessions[purpose] = session
            self._isolations.setdefault(session.isolation)
            self._servers.setdefault(session.server)
        return session


def _begins_again(tool_set: ToolSet) -> bool:
    """Whether a session whose tool ran out of time is then like a new one.

    A sandbox begins again; the faults of an adaptation go on where the count of calls stands.
    """
    adaptation = tool_set.adaptation
    if adaptation is None:
        return tool_set.sandboxed
    return adaptation.fault_rate == 0 and _begins_again(adaptation.base)
