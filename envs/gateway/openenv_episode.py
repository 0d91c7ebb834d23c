"""One OpenEnv environment: the episodes that one client runs, one after the other."""

import asyncio
import itertools
import json
import secrets
from collections.abc import Mapping, Sequence

from envs.config import ToolServerConfig
from envs.errors import DeadlineError, InfraError, TrialrunError
from envs.evidence import Evidence, read_state
from envs.gateway.call_check import fault_of
from envs.gateway.gateway_host import InProcessSession, InProcessTools
from envs.remote.openenv_wire import (
    Action,
    AnswerAction,
    CallToolAction,
    CallToolObservation,
    EpisodeState,
    ErrorCode,
    ListToolsAction,
    ListToolsObservation,
    ResetOptions,
    StepResult,
    TaskObservation,
    ToolErrorType,
    ToolFault,
    ToolListing,
)
from envs.scoring.weighted import checked
from envs.server.session_host import SessionHost, run_to_completion
from envs.server.wire import CallItem, CallResult, EncodedCall, OpenedSession, OpenItem, WireError
from envs.services.evidence_of import UnperturbedSession, made_calls
from envs.tasks import Conversation, Score, Task, reads_state, score_episode
from envs.tools import AnswerStatus, JsonObject, SessionPurpose, ToolAnswer, ToolCall

_FAULT_OF_STATUS: Mapping[AnswerStatus, ToolErrorType] = {
    AnswerStatus.TOOL_ERROR: "execution_error",
    AnswerStatus.TIMEOUT: "timeout",
}


class OpenEnvError(TrialrunError):
    """An error that the client gets instead of an observation; not caused by the policy."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code: ErrorCode = code
        self.message = message


class TaskPool:
    """The tasks that are served.

    A reset that gives no task id and no seed gets the next in turn.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Raises ValueError if there is no task."""
        if not tasks:
            raise ValueError("expected at least one task to serve, found none")
        self.tasks = tuple(tasks)
        self._by_id = {task.id: task for task in tasks}
        self._turn = itertools.cycle(self.tasks)

    def choose(self, options: ResetOptions) -> Task:
        """Return the task of an episode. Raises OpenEnvError for an unknown task id."""
        if options.task_id is not None:
            task = self._by_id.get(options.task_id)
            if task is None:
                message = f"no task {options.task_id!r}; a valid id is {self.tasks[0].id!r}"
                raise OpenEnvError("VALIDATION_ERROR", message)
            return task
        if options.seed is not None:
            return self.tasks[options.seed % len(self.tasks)]
        return next(self._turn)


class OpenEnvEpisode:
    """The episode of an environment, from one `reset` to the next.

    Before the first reset it is as after a reset without options. Requests are served one after the
    other. A tool session is open only while it is needed.
    """

    def __init__(self, host: SessionHost, task_pool: TaskPool, config: ToolServerConfig) -> None:
        self._host = host
        self._task_pool = task_pool
        self._deadline_s = config.request_timeout_s + config.call_timeout_s
        self._lock = asyncio.Lock()
        self._session = ""
        self.begun = False
        """Whether the client has reset it or taken a step."""
        self._start(ResetOptions(), task_pool.tasks[0])

    async def reset(self, options: ResetOptions) -> StepResult:
        """Start an episode. Raises OpenEnvError."""
        self.begun = True
        async with self._lock:
            task = self._task_pool.choose(options)
            self.close()
            self._start(options, task)
            await self._open()
            return StepResult(observation=self._observe())

    async def step(self, action: Action) -> StepResult:
        """Apply `action`. Raises OpenEnvError if the infrastructure fails or the order is wrong."""
        if isinstance(action, ListToolsAction):
            return StepResult(observation=ListToolsObservation(tools=self._tool_listings()))
        self.begun = True
        async with self._lock:
            if self._done:
                raise OpenEnvError("EXECUTION_ERROR", "the episode has ended: send reset")
            if isinstance(action, CallToolAction):
                result = StepResult(observation=await self._call(action))
            elif isinstance(action, AnswerAction):
                result = await self._answer(action.text)
            else:
                result = await self._start_execution()
            self._step_count += 1
            return result

    def state(self) -> EpisodeState:
        """Return the state of the episode."""
        return EpisodeState(
            episode_id=self._episode_id,
            step_count=self._step_count,
            task_id=self._task.id,
            phase=self._phase,
            mode=self._options.mode,
            done=self._done,
        )

    def close(self) -> None:
        """End the tool session; harmless if there is none."""
        if self._session:
            self._host.close([self._session])
            self._session = ""

    def _start(self, options: ResetOptions, task: Task) -> None:
        self._options = options
        self._task = task
        self._tools = task.tool_set.tools
        """The tools that the session has now; calls may change them."""
        self._episode_id = options.episode_id or secrets.token_hex(8)
        self._phase: SessionPurpose = "trial" if options.mode == "trial" else "execution"
        self._step_count = 0
        self._done = False
        self._answers: list[str] = []
        self._said: list[str] = []
        self._states: list[str] = []
        self._made: list[tuple[ToolCall, ToolAnswer, int]] = []

    async def _start_execution(self) -> StepResult:
        if self._phase == "execution":
            raise OpenEnvError("EXECUTION_ERROR", "the execution phase has started already")
        self.close()
        self._phase = "execution"
        await self._open()
        return StepResult(observation=self._observe())

    async def _answer(self, text: str) -> StepResult:
        if self._phase == "trial":
            message = (
                "an answer is only possible in the execution phase: send begin_execution first"
            )
            raise OpenEnvError("EXECUTION_ERROR", message)
        self._answers.append(text)
        try:
            message = await self._users_message()
            if message is not None:
                return StepResult(observation=self._observe(message))
            score = await self._score()
        except (InfraError, DeadlineError) as error:
            raise OpenEnvError("EXECUTION_ERROR", f"no score: {error}") from error
        self._done = True
        self.close()
        parts: JsonObject = dict(score.parts)
        metadata: JsonObject = {"reward_parts": parts}
        return StepResult(
            observation=self._observe(), reward=score.reward, done=True, metadata=metadata
        )

    async def _users_message(self) -> str | None:
        """Return what the user says to the last answer, None at the end of the conversation."""
        if reads_state(self._task.scorer):
            self._states.append(await read_state(await self._own_session()))
        if self._task.user is None:
            return None
        message = await self._task.user.say(
            Conversation(
                question=self._task.question,
                answers=tuple(self._answers),
                said=tuple(self._said),
                tools=InProcessTools(self._host),
                seed=self._options.seed or 0,
                episode=self._episode_id,
            )
        )
        if message is not None:
            self._said.append(message)
        return message

    async def _score(self) -> Score:
        tool_set = self._task.tool_set
        evidence = Evidence(
            question=self._task.question,
            answers=tuple(self._answers),
            calls=made_calls(tool_set, self._made),
            states=tuple(self._states),
            tools=InProcessTools(self._host),
            tool_set=tool_set.root,
            execution=UnperturbedSession(await self._own_session(), tool_set),
            seed=self._options.seed or 0,
            episode=self._episode_id,
        )
        return checked(await score_episode(self._task.scorer, evidence), "of the task")

    async def _own_session(self) -> InProcessSession:
        if not self._session:
            await self._open()
        return InProcessSession(self._host, OpenedSession(id=self._session))

    async def _call(self, action: CallToolAction) -> CallToolObservation:
        name = action.tool_name
        tool = next((each for each in self._tools if each.name == name), None)
        if tool is None:
            names = ", ".join(each.name for each in self._tools)
            return _fault(name, "tool_not_found", f"no tool {name[:80]!r}; tools are: {names}")
        if wrong := await fault_of(tool, action.arguments):
            return _fault(name, "invalid_args", wrong)
        if not self._session:
            await self._open()
        call = EncodedCall(name=name, arguments=json.dumps(action.arguments))
        result = await self._ask_host(CallItem(session=self._session, calls=(call,)))
        answer = result.answers[0]
        if answer.status is AnswerStatus.INFRA_ERROR:
            raise OpenEnvError("EXECUTION_ERROR", answer.text)
        if answer.tools is not None:
            self._tools = answer.tools
        if self._phase == "execution":
            made = ToolCall(name=name, arguments=action.arguments)
            self._made.append((made, answer, len(self._said)))
        kind = _FAULT_OF_STATUS.get(answer.status)
        if kind:
            return _fault(name, kind, answer.text)
        return CallToolObservation(tool_name=name, result=answer.text)

    async def _ask_host(self, item: CallItem) -> CallResult:
        try:
            async with asyncio.timeout(self._deadline_s):
                result = await run_to_completion(self._host.call(0, item))
        except TimeoutError as error:
            raise self._too_slow() from error
        if result.error:
            raise _refused(result.error)
        return result

    async def _open(self) -> None:
        tool_set = self._task.tool_set
        self._tools = tool_set.tools
        item = OpenItem(
            digest=tool_set.digest,
            seed=self._options.seed or 0,
            purpose=self._phase,
            episode=self._episode_id,
        )
        if self._host.unknown_digests([item]):
            self._host.add_tool_sets({tool_set.digest: tool_set})
        # Not cancelled while it runs: a session that opens after all must be closed here.
        opening = asyncio.ensure_future(self._host.open_session(item))
        try:
            opened = await asyncio.wait_for(asyncio.shield(opening), self._deadline_s)
        except (TimeoutError, asyncio.CancelledError) as error:
            opening.add_done_callback(self._close_late)
            if isinstance(error, TimeoutError):
                raise self._too_slow() from error
            raise
        if opened.error:
            raise _refused(opened.error)
        self._session = opened.id

    def _close_late(self, opening: asyncio.Future[OpenedSession]) -> None:
        if not opening.cancelled() and not opening.exception() and opening.result().id:
            self._host.close([opening.result().id])

    def _too_slow(self) -> OpenEnvError:
        return OpenEnvError("EXECUTION_ERROR", f"no answer within {self._deadline_s:g} s")

    def _tool_listings(self) -> tuple[ToolListing, ...]:
        return tuple(ToolListing.of(tool) for tool in self._tools)

    def _observe(self, message: str = "") -> TaskObservation:
        """Return the observation with what the user says: a `message`, or the question."""
        return TaskObservation(
            task_id=self._task.id,
            phase=self._phase,
            question=message or self._task.question,
            available_tools=self._tool_listings(),
        )


def _fault(name: str, kind: ToolErrorType, message: str) -> CallToolObservation:
    fault = ToolFault(error_type=kind, message=message)
    return CallToolObservation(tool_name=name, error=fault)


def _refused(error: WireError) -> OpenEnvError:
    code: ErrorCode = "CAPACITY_REACHED" if error.kind == "full" else "SESSION_ERROR"
    return OpenEnvError(code, f"{error.kind}: {error.message}")
