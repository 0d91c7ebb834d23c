"""One episode in progress: the phases, turns, tools and budgets of it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from envs.errors import DeadlineError, EngineError, InfraError, PolicyError
from envs.messages import Message, marked, unmarked, world
from envs.seeds import stable_hash
from envs.tasks import Score, Task
from envs.tools import AnswerStatus, SessionPurpose, ToolAnswer, ToolCall, ToolService
from rollout.aftermath import Aftermath
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, PhaseBudget
from rollout.engine import Engine, Prompt, SamplingParams
from rollout.episode import CallRecord, Episode, Lease, Outcome, Phase
from rollout.episode_record import Ended, record_of
from rollout.formats.turn_format import TurnFormat
from rollout.identity import Doing, Identity
from rollout.kept_turns import KeptTurns, Mark, Standing, TurnsNotKept, TurnsPart, replay
from rollout.language import Language
from rollout.observation import Cutter, off_the_loop
from rollout.parser import ParsedTurn, arguments_text
from rollout.phase_clock import TurnClock
from rollout.phase_tools import PhaseTools, attempt_id
from rollout.prompts import prompt_too_long
from rollout.trajectory import Trajectory, VisibleFrom


class _Ended(Exception):
    """Ends the episode with an outcome; raised within the runner only."""

    def __init__(self, outcome: Outcome, error: str = "") -> None:
        super().__init__(outcome, error)
        self.outcome = outcome
        self.error = error


@dataclass(frozen=True, slots=True)
class Assignment:
    lease: Lease
    task: Task
    config: EpisodeConfig
    format: TurnFormat
    kept: KeptTurns | None = None
    """Finished turns of an earlier attempt, to go on from."""


class EpisodeInProgress:
    """One episode in progress."""

    def __init__(
        self,
        engine: Engine,
        tools: ToolService,
        template: ChatTemplate,
        identity: Identity,
        assignment: Assignment,
    ) -> None:
        self._engine = engine
        self._template = template
        self._identity = identity
        self._lease, self._task, self._config = assignment.lease, assignment.task, assignment.config
        self._tools = PhaseTools(
            tools,
            self._task.tool_set,
            self._lease.seed,
            self._config.trial_sessions,
            attempt_id(self._lease.episode, self._lease.attempt),
        )
        self._language = Language(template, assignment.format, self._task, self._config)
        self._prompts = self._language.prompts
        self._trajectory = Trajectory()
        self._at = Standing("execution" if self._config.mode == "direct" else "trial")
        self._cutter = Cutter(
            turn_tokens=self._config.max_tokens_per_turn,
            limit=self._config.max_observation_tokens,
        )
        self._aftermath = Aftermath(tools, self._tools, self._task, self._lease)
        self._is_answered = False
        self._score = Score(0.0)
        self.doing = self._waits_for("its first turn")
        self._kept = assignment.kept
        self._mark = self._sent = Mark()
        """Where it stood at the end of its last turn, and what was taken of that."""

    def _waits_for(self, what: str) -> Doing:
        self.doing = Doing(episode=self._lease.episode, what=what, since=time.monotonic())
        return self.doing

    async def run_to_end(self) -> Episode:
        started_at, start = time.time(), time.monotonic()
        outcome, error = Outcome.ANSWERED, ""
        try:
            if self._kept is None:
                await self._show_only(self._language.opening())
            else:
                await self._go_on_from(self._kept)
            while True:
                await self._timed_turn()
                self._mark = Mark.of(self._trajectory, self._at, self._cutter)
        except _Ended as end:
            outcome, error = end.outcome, end.error
        except (DeadlineError, TimeoutError) as cause:
            outcome, error = Outcome.DEADLINE, str(cause) or "a phase exceeded its seconds"
        except (EngineError, TurnsNotKept):
            raise
        except InfraError as cause:
            outcome, error = Outcome.INFRA_FAILED, f"{type(cause).__name__}: {cause}"
        except Exception as cause:
            outcome, error = Outcome.INFRA_FAILED, f"defect: {type(cause).__name__}: {cause}"
        finally:
            await self._tools.close()
        ended = Ended(
            lease=self._lease,
            task=self._task,
            config=self._config,
            identity=self._identity,
            outcome=outcome,
            error=error,
            started_at=started_at,
            wall_s=time.monotonic() - start,
            trajectory=self._trajectory,
            at=self._at,
            tools=self._tools,
            cutter=self._cutter,
            score=self._score,
            kept_turns=len(self._kept.turns) if self._kept is not None else None,
        )
        return record_of(ended)

    # Turns that outlive the worker

    def take_turns(self) -> TurnsPart | None:
        """Return the finished turns since the last call; None if there are none."""
        if self._mark.turns == self._sent.turns:
            return None
        lease, before = self._lease, self._sent
        self._sent = self._mark
        return TurnsPart.between(self._trajectory, before, self._mark, lease.episode, lease.attempt)

    async def _go_on_from(self, kept: KeptTurns) -> None:
        """Take up the turns of an earlier attempt. Raises TurnsNotKept where tools have changed."""
        kept.fill(self._trajectory, self._cutter)
        self._at = kept.mark.at.copy()
        self._waits_for("the replay of its tools")
        shared = self._config.trial_sessions == "shared"
        try:
            tools_s = sum(self._at.tool_seconds.values())
            async with asyncio.timeout(self._config.execution.seconds + tools_s):
                difference = await replay(kept, self._tools, shared=shared)
        except (DeadlineError, TimeoutError) as error:
            raise TurnsNotKept(f"the replay of its tools took too long: {error}") from error
        if difference:
            raise TurnsNotKept(f"replayed tools differ: {difference}")
        self._renewed()  # the kept turns have told it
        self._mark = Mark.of(self._trajectory, self._at, self._cutter)

    # The turn

    async def _show_only(self, messages: Sequence[Message]) -> None:
        """Let the policy see only `messages`, the opening among them, from now on."""
        trajectory = self._trajectory
        ids = await off_the_loop(messages, partial(self._language.tokenise, messages))
        if len(ids) >= self._identity.max_model_len:
            error = prompt_too_long(self._task.id, len(ids), self._identity.max_model_len)
            raise _Ended(Outcome.PROMPT_TOO_LONG, error)
        self._at.visible = VisibleFrom(len(trajectory.token_ids_T), len(trajectory.messages))
        trajectory.append_world(ids, Phase.PROMPT, messages)

    async def _timed_turn(self) -> None:
        stage = self._at.stage
        clock = TurnClock(self._budget(stage).seconds - self._at.seconds[stage])
        async with clock:
            await self._turn(clock)
        self._at.seconds[stage] += clock.world_s
        self._at.tool_seconds[stage] += clock.tools_s
        if self._is_answered:
            self._is_answered = False
            await self._after_answer()
        if self._at.stage == "trial" and self._calls_left() > 0:
            await self._catch_up()

    async def _after_answer(self, *, is_last: bool = False) -> None:
        """Let the user go on, or score the episode; the budgets of phases do not count this."""
        self._waits_for("its user or its scorer")
        message = await self._aftermath.answered(self._at, len(self._trajectory.turns))
        if message is None or is_last:
            self._score = await self._aftermath.score(self._at, self._trajectory.turns)
            raise _Ended(Outcome.ANSWERED)
        await self._observe([marked("user", world(message))])

    async def _catch_up(self) -> None:
        """Bring the trial session up to date. Of the phase budgets only the seconds of tools count
        this: the policy chose to come back, and knows how long its calls take.
        """
        start = time.monotonic()
        limit_s = self._config.execution.seconds + self._at.tool_seconds["execution"]
        try:
            async with asyncio.timeout(limit_s):
                self._at.tool_seconds["trial"] += await self._tools.catch_up()
        except TimeoutError:
            raise DeadlineError(f"the replay before a trial took more than {limit_s:g} s") from None
        self._trajectory.tool_s += time.monotonic() - start

    async def _turn(self, clock: TurnClock) -> None:
        limit = self._token_limit()
        if limit <= 0 or self._at.made[self._at.stage] >= self._budget(self._at.stage).turns:
            await self._out_of_budget(limit)
            return
        text, finish = await self._sample(limit)
        context = self._trajectory.before_turn()
        try:
            parsed = self._language.parse(text, finish, self._at.stage, context)
        except PolicyError as error:
            self._trajectory.settle_turn(self._phase(), policy_error=error.kind.value)
            self._at.faults += 1
            if self._at.faults >= self._config.max_policy_errors:
                said = unmarked(error.message)
                raise _Ended(Outcome.POLICY_ERROR, f"{error.kind.value}: {said}") from None
            await self._observe([self._prompts.fault(error)])
            return
        await self._act(parsed, clock)

    async def _sample(self, limit: int) -> tuple[str, str]:
        config, lease, trajectory = self._config, self._lease, self._trajectory
        index = len(trajectory.turns)
        seed = stable_hash(lease.seed, index) & 0x7FFFFFFF if config.seeded else None
        params = SamplingParams(
            max_tokens=limit,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            seed=seed,
        )
        request = f"{lease.episode}.{lease.attempt}.{index}"
        ids, messages = self._at.visible.visible(trajectory)
        prompt = Prompt(request, ids, messages, lease.seed)
        start = self._waits_for("the engine").since
        completion = await self._engine.sample(prompt, params)
        trajectory.generate_s += time.monotonic() - start
        text = self._template.decode(completion.token_ids)
        trajectory.append_completion(completion, self._phase(), text)
        self._at.made[self._at.stage] += 1
        return text, completion.finish_reason

    async def _act(self, parsed: ParsedTurn, clock: TurnClock) -> None:
        if parsed.calls:
            await self._call(parsed.calls, clock)
        elif self._at.stage == "trial":
            self._trajectory.settle_turn(Phase.EXPERIENCE)
            await self._enter("execution")
        elif parsed.answer is not None:
            self._at.answers.append(parsed.answer)
            self._is_answered = True
        else:
            await self._enter("trial")

    # Tools

    async def _call(self, calls: Sequence[ToolCall], clock: TurnClock) -> None:
        stage = self._at.stage
        left = self._calls_left()
        if left <= 0:
            say = self._prompts
            await self._observe([say.trials_used_up() if stage == "trial" else say.calls_used_up()])
            return
        granted = list(calls[:left])
        self._at.used[stage] += len(granted)
        start = self._waits_for(f"its tools ({', '.join(sorted({c.name for c in granted}))})").since
        answers = await clock.tools(self._tools.call(stage, granted))
        self._trajectory.tool_s += time.monotonic() - start
        self._trajectory.settle_turn(self._phase(), calls=self._records(granted, answers))
        for answer in answers:
            if answer.status is AnswerStatus.INFRA_ERROR:
                raise _Ended(Outcome.INFRA_FAILED, answer.text)
        if any(answer.done for answer in answers):
            await self._world_ended(stage)
        told = zip(self._prompts.answers(answers), granted, strict=True)
        observed = [replace(message, name=call.name) for message, call in told]
        if len(granted) < len(calls):
            observed.append(self._prompts.not_run(len(calls) - len(granted), len(calls), stage))
        await self._observe([*observed, *self._renewed()])

    def _renewed(self) -> list[Message]:
        """Return what the policy must be told of its tools, if they have changed."""
        return self._language.renewed(self._tools.offered(self._at.stage))

    async def _world_ended(self, stage: SessionPurpose) -> None:
        """End the episode, which is then scored as it stands; in a trial, only the session."""
        if stage == "trial" and self._config.trial_sessions == "isolated":
            await self._tools.end_trial()
            return
        self._at.answers.append("")
        await self._after_answer(is_last=True)

    def _records(
        self, calls: Sequence[ToolCall], answers: Sequence[ToolAnswer]
    ) -> list[CallRecord]:
        return [
            CallRecord(
                name=call.name,
                arguments=arguments_text(call.arguments),
                status=answer.status,
                result=answer.text,
                seconds=answer.seconds,
                cpu_seconds=answer.cpu_seconds,
                purpose=self._at.stage,
            )
            for call, answer in zip(calls, answers, strict=True)
        ]

    async def _enter(self, stage: SessionPurpose) -> None:
        """Change phase; the tool state of the trials is discarded."""
        await self._tools.end_trial()
        self._at.stage = stage
        if stage == "execution" and self._config.experience == "dropped":
            # as if there had been no trials
            start = self._prompts.execution_start()
            await self._show_only([*self._language.opening(), start, *self._renewed()])
            return
        start = self._prompts.execution_start if stage == "execution" else self._prompts.trial_start
        await self._observe([start(), *self._renewed()])

    # Budgets and bookkeeping

    def _budget(self, stage: SessionPurpose) -> PhaseBudget:
        return self._config.trial if stage == "trial" else self._config.execution

    def _calls_left(self) -> int:
        """Return how many calls the phase still has: none once its tools have used up its seconds,
        for the policy called them.
        """
        stage, budget = self._at.stage, self._budget(self._at.stage)
        if self._at.tool_seconds[stage] >= budget.seconds:
            return 0
        return budget.calls - self._at.used[stage]

    def _phase(self) -> Phase:
        return Phase.TRIAL if self._at.stage == "trial" else Phase.EXECUTION

    def _token_limit(self) -> int:
        phases = (
            (Phase.TRIAL, Phase.EXPERIENCE) if self._at.stage == "trial" else (Phase.EXECUTION,)
        )
        left = self._budget(self._at.stage).tokens - self._trajectory.sampled_in(phases)
        return min(left, self._room(), self._config.max_tokens_per_turn)

    async def _out_of_budget(self, limit: int) -> None:
        if self._at.stage == "trial" and self._room() > 0:
            await self._enter("execution")
            return
        exhausted = "tokens" if limit <= 0 else "turns"
        raise _Ended(Outcome.TRUNCATED, f"out of {exhausted} in the {self._at.stage} phase")

    def _room(self) -> int:
        """Return how many tokens the model's context has left."""
        return self._identity.max_model_len - self._at.visible.length(self._trajectory)

    async def _observe(self, messages: Sequence[Message]) -> None:
        """Append messages, cut to leave room for the turns that an answer needs.

        If the thoughts of the last turn are to be dropped, the policy sees the conversation anew.
        """
        trajectory = self._trajectory
        ids, past = self._at.visible.visible(trajectory)
        stripped = self._language.without_thoughts(past, trajectory.before_turn())
        turns = 2 if self._at.stage == "trial" else 1  # an experience comes before the answer
        if stripped is None:
            tokenise = partial(self._template.continuation, last_id=ids[-1], history=past[:-1])
            seen = await self._cutter.fit(messages, tokenise, self._room(), turns)
        else:
            spoken = len(self._language.tokenise(stripped))
            room = self._identity.max_model_len - spoken
            tokenise = partial(self._language.tokenise_after, stripped)
            seen = await self._cutter.fit(messages, tokenise, room, turns, before=spoken)
        if seen is None:
            raise _Ended(Outcome.TRUNCATED, f"out of tokens in the {self._at.stage} phase")
        if stripped is None:
            trajectory.append_world(seen.token_ids, Phase.OBSERVATION, seen.messages)
            return
        self._at.visible = VisibleFrom(len(trajectory.token_ids_T), len(trajectory.messages))
        trajectory.append_world(seen.token_ids, Phase.PROMPT, [*stripped, *seen.messages])
