"""The tool sessions of one episode: which phase acts on which state."""

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
    ToolSpec,
)
from rollout.config import TrialSessions
from rollout.phase_clock import tool_seconds


def attempt_id(episode: str, attempt: int) -> str:
    """Return the id that the tool sessions of one attempt at an episode carry."""
    return f"{episode}.{attempt}"


@dataclass(frozen=True, slots=True)
class _Executed:
    """One execution call and its answer; a replay of the call should give the same answer."""

    call: ToolCall
    answer: ToolAnswer


class PhaseTools:
    """Opens, calls, replays and closes the sessions of one episode.

    `episode` is the `attempt_id` that the sessions carry. Isolated trials act on a separate session
    in the state to which the execution calls so far have led; it is discarded when the trial phase
    ends. Shared trials act on the same session as execution. Not covered: tools that keep state
    outside of their session (a real HTTP API) see the replayed calls a second time.
    """

    def __init__(
        self,
        service: ToolService,
        tool_set: ToolSet,
        seed: int,
        sharing: TrialSessions,
        episode: str = "",
    ) -> None:
        self._service = service
        self._tool_set = tool_set
        self._seed = seed
        self._sharing = sharing
        self._episode = episode
        self._sessions: dict[SessionPurpose, ToolSession] = {}
        self._executed: list[_Executed] = []
        self._offered: dict[SessionPurpose, tuple[ToolSpec, ...]] = {}
        self._isolations: dict[str, None] = {}
        self._servers: dict[str, None] = {}
        self.replayed_calls = 0
        self.replay_differences = 0
        """Replayed calls whose answer differed from the first one."""

    @property
    def isolation(self) -> str:
        """Achieved isolation of the sessions, each kind once."""
        return ", ".join(self._isolations)

    @property
    def servers(self) -> str:
        """Names of the servers of the sessions, in the order of their first use."""
        return ", ".join(self._servers)

    def offered(self, phase: SessionPurpose) -> tuple[ToolSpec, ...]:
        """Return the tools that the session for `phase` has now; it may be opened later."""
        if phase == "trial" and (self._sharing == "shared" or "trial" not in self._sessions):
            phase = "execution"  # whose calls a trial session replays first
        return self._offered.get(phase, self._tool_set.tools)

    async def call(self, phase: SessionPurpose, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` for `phase`, in order. Raises ToolServerError, SandboxError, DeadlineError.

        The caller must handle answers with status INFRA_ERROR.
        """
        answers = await self._answers(phase, calls)
        if phase == "execution":
            self._remember(calls, answers)
        return answers

    async def execution(self) -> ToolSession:
        """Return the session of the execution phase, in its initial state if no call was made yet.

        Raises ToolServerError, DeadlineError.
        """
        return await self._session("execution")

    async def catch_up(self) -> float:
        """Replay the execution calls in a new trial session, unless it has their state already.

        Returns the seconds that their tools took.
        Raises ToolServerError, SandboxError (a replayed call had an infrastructure failure) or
        DeadlineError.
        """
        if self._sharing == "shared" or "trial" in self._sessions or not self._executed:
            return 0.0
        answers = await self._answers("trial", [executed.call for executed in self._executed])
        for executed, answer in zip(self._executed, answers, strict=True):
            if answer.status is AnswerStatus.INFRA_ERROR:
                raise SandboxError(f"the replay of {executed.call.name} failed: {answer.text}")
            before = (executed.answer.status, executed.answer.text)
            self.replay_differences += (answer.status, answer.text) != before
        self.replayed_calls += len(answers)
        return tool_seconds(answers)

    async def replay(
        self, phase: SessionPurpose, recorded: Sequence[tuple[ToolCall, str, str]]
    ) -> str:
        """Bring a new session for `phase` to the state after the `recorded` calls (call, status,
        text); return how an answer differs from the recorded one, empty if none does.

        Raises ToolServerError, SandboxError, DeadlineError.
        """
        if not recorded:
            return ""
        calls = [call for call, _, _ in recorded]
        answers = await self._answers(phase, calls)
        for (call, status, text), answer in zip(recorded, answers, strict=True):
            if (answer.status.value, answer.text) != (status, text):
                return f"{call.name} answered {answer.text[:80]!r}, before it was {text[:80]!r}"
        if phase == "execution":
            self._remember(calls, answers)
        self.replayed_calls += len(answers)
        return ""

    @property
    def timeouts_reset(self) -> bool:
        """Whether a call that timed out left its session in the initial state."""
        return _starts_again(self._tool_set)

    async def end_trial(self) -> None:
        """Discard the session of the trials."""
        session = self._sessions.pop("trial", None)
        self._offered.pop("trial", None)
        if session is not None:
            await session.close()

    async def close(self) -> None:
        """End all sessions."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            await session.close()

    async def _answers(self, phase: SessionPurpose, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        answers = await (await self._session(phase)).call(calls)
        for answer in answers:
            if answer.tools is not None:
                self._offered["execution" if self._sharing == "shared" else phase] = answer.tools
        return answers

    def _remember(self, calls: Sequence[ToolCall], answers: Sequence[ToolAnswer]) -> None:
        """Store the calls that a replay needs; a sandbox that stops a tool resets its state."""
        for call, answer in zip(calls, answers, strict=True):
            if answer.status is AnswerStatus.TIMEOUT and _starts_again(self._tool_set):
                self._executed.clear()
            else:
                self._executed.append(_Executed(call, answer))

    async def _session(self, phase: SessionPurpose) -> ToolSession:
        purpose = "execution" if self._sharing == "shared" else phase
        session = self._sessions.get(purpose)
        if session is None:
            session = await self._service.open_session(
                self._tool_set, self._seed, purpose, self._episode
            )
            self._sessions[purpose] = session
            self._isolations.setdefault(session.isolation)
            self._servers.setdefault(session.server)
        return session


def _starts_again(tool_set: ToolSet) -> bool:
    """Return whether a session is in its initial state after a tool ran out of time.

    A sandbox is; an adaptation with faults is not, because its faults depend on the count of calls,
    and neither are several sets together, of which only one starts again.
    """
    adaptation = tool_set.adaptation
    if adaptation is None:
        return tool_set.sandboxed
    return adaptation.fault_rate == 0 and _starts_again(adaptation.base)
