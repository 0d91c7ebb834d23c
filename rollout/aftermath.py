"""What follows an answer: the user's next message, or the score of the episode."""

import json
from collections.abc import Sequence

from envs.evidence import Evidence, read_state
from envs.scoring.weighted import checked
from envs.services.evidence_of import UnperturbedSession, made_calls
from envs.tasks import Conversation, Score, Task, reads_state, score_episode
from envs.tools import ToolAnswer, ToolCall, ToolService
from rollout.episode import CallRecord, Lease, Turn
from rollout.kept_turns import Standing
from rollout.phase_tools import PhaseTools, attempt_id


class Aftermath:
    """Speaks with the user of one episode, and scores it.

    Scorers and simulated users have sessions of their own; nothing of them reaches the policy's.
    """

    def __init__(self, service: ToolService, tools: PhaseTools, task: Task, lease: Lease) -> None:
        self._service = service
        self._tools = tools
        self._task = task
        self._seed = lease.seed
        self._episode = attempt_id(lease.episode, lease.attempt)

    async def answered(self, at: Standing, turns: int) -> str | None:
        """Return what the user says to the last answer in `at`, None if the episode ends with it.

        `turns` are those so far. Raises InfraError, DeadlineError.
        """
        if reads_state(self._task.scorer):
            at.states.append(await read_state(await self._tools.execution()))
        if self._task.user is None:
            return None
        conversation = Conversation(
            question=self._task.question,
            answers=tuple(at.answers),
            said=tuple(at.said),
            tools=self._service,
            seed=self._seed,
            episode=self._episode,
        )
        message = await self._task.user.say(conversation)
        if message is not None:
            at.said.append(message)
            at.said_at.append(turns)
        return message

    async def score(self, at: Standing, turns: Sequence[Turn]) -> Score:
        """Return the score of the episode. Raises InfraError, DeadlineError."""
        tool_set, scorer = self._task.tool_set, self._task.scorer
        executed = [
            (call, sum(start <= number for start in at.said_at))
            for number, turn in enumerate(turns)
            for call in turn.calls
            if call.purpose == "execution"
        ]
        evidence = Evidence(
            question=self._task.question,
            answers=tuple(at.answers),
            calls=made_calls(tool_set, ((*_as_made(call), turn) for call, turn in executed)),
            states=tuple(at.states),
            tools=self._service,
            tool_set=tool_set.root,
            execution=UnperturbedSession(_LateSession(self._tools), tool_set),
            seed=self._seed,
            episode=self._episode,
        )
        return checked(await score_episode(scorer, evidence), "of the task")


class _LateSession:
    """The execution session, which is opened only if a scorer calls it."""

    id = server = isolation = ""

    def __init__(self, tools: PhaseTools) -> None:
        self._tools = tools

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order. Raises ToolServerError or DeadlineError."""
        return await (await self._tools.execution()).call(calls)

    async def close(self) -> None:
        """Do nothing: the episode closes its sessions itself."""


def _as_made(record: CallRecord) -> tuple[ToolCall, ToolAnswer]:
    call = ToolCall(name=record.name, arguments=json.loads(record.arguments))
    return call, ToolAnswer(status=record.status, text=record.result, seconds=record.seconds)
