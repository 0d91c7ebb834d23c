"""Makes the scorers and users that tasks name."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.answers import whole_number
from envs.argument_check import check_arguments
from envs.config import JudgeConfig, SimulatedUserConfig
from envs.endpoints import OpenEnvEndpoint
from envs.errors import DataFileError
from envs.remote.chat_client import chat_tools
from envs.scoring.answer_text import NumberScorer, TextScorer
from envs.scoring.calls import CallPath, GoldCalls, Probe, ProbeCalls, Step
from envs.scoring.environment import EnvironmentReward
from envs.scoring.function import GIVEN, FunctionScorer, TrustedScorer
from envs.scoring.judge import PROMPT as JUDGE_PROMPT
from envs.scoring.judge import Judge
from envs.scoring.users import PROMPT as USER_PROMPT
from envs.scoring.users import ScriptedUser, SimulatedUser
from envs.scoring.weighted import NamedScorer, WeightedScorers
from envs.sources.python_folder import Folder, Hidden, read_folder
from envs.sources.python_scope import Function
from envs.tasks import EpisodeScorer, Scorer, User
from envs.tasksets.file.scorer_rows import (
    AnswerRow,
    CallRow,
    EnvironmentRow,
    FunctionRow,
    GoldRow,
    JudgeRow,
    PathRow,
    ProbesRow,
    ScorerRow,
    SimulatedRow,
    UserRow,
    kind_of,
)
from envs.tools import ToolCall, ToolSet, ToolSpec

_FUNCTION = "score"
_ANSWER_SCORER = "match"
"""Name of the part of a task's own `answer`, beside other scorers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a task says about its scoring."""

    answer: str | int | float | None
    match: str
    """`exact`, `numeric`, `contains` or `none`."""
    tolerance: float
    scorers: Sequence[ScorerRow]
    user: UserRow | None
    tool_set: ToolSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerMaker:
    """Makes scorers for the tasks in `folder`; `limit_s` is the time of a trusted function."""

    folder: Path
    judge: JudgeConfig
    simulated_user: SimulatedUserConfig
    trusted: bool
    limit_s: float
    _read: dict[str, Folder] = field(default_factory=dict)

    def hidden(self, rows: Sequence[ScorerRow]) -> Hidden:
        """Return what tools may not read: the scoring functions, and the files that they name."""
        files = {r.function.partition(":")[0] for r in rows if isinstance(r, FunctionRow)}
        sources = [self.folder / file for file in files]
        beside = [path.parent / name for path in sources for name in self._folder(path).files]
        return Hidden(refused=tuple(sources), skipped=tuple(beside))

    def scorer(self, what: Scored) -> Scorer | EpisodeScorer:
        """Return the scorer of a task: that of its answer, and the others, by weight.

        Raises DataFileError, MissingError, and ConfigError for a judge without a model.
        """
        own = None if what.answer is None or what.match == "none" else answer_scorer(what)
        if not what.scorers:
            if own is None and worlds_of(what.tool_set):
                return EnvironmentReward()
            if own is None:
                raise DataFileError(
                    "expected an `answer`, or `scorers` with at least one scorer, found neither"
                )
            return own
        named = [NamedScorer(name=_ANSWER_SCORER, scorer=own)] if own else []
        for row in what.scorers:
            made = self._made(row, what)
            named.append(NamedScorer(name=kind_of(row), scorer=made, weight=row.weight))
        names = [each.name for each in named]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataFileError(
                f"expected scorers of different names, found {', '.join(twice)} more than once: "
                "give each a `name`"
            )
        if not sum(each.weight for each in named):
            raise DataFileError("expected a scorer with a `weight` above 0, found none")
        return WeightedScorers(tuple(named))

    def user(self, row: UserRow | None) -> User | None:
        """Return who goes on after an answer. Raises ConfigError for a user without a model."""
        if row is None:
            return None
        if isinstance(simulated := row.simulated, SimulatedRow):
            config = self.simulated_user
            return SimulatedUser(
                chat=chat_tools(config, "simulated_user"),
                instructions=simulated.instructions,
                max_messages=simulated.messages,
                prompt=config.prompt or USER_PROMPT,
            )
        return ScriptedUser(row.says)

    def _made(self, row: ScorerRow, what: Scored) -> Scorer | EpisodeScorer:
        match row:
            case AnswerRow():
                if what.answer is None:
                    raise DataFileError("expected `answer` for the scorer `answer`, found none")
                return answer_scorer(what, row.answer)
            case FunctionRow():
                return self._function(row, what)
            case GoldRow():
                return _gold(row, what)
            case ProbesRow(probes=probes):
                called = [_call(probe, what.tool_set) for probe in probes]
                pairs = zip(called, probes, strict=True)
                return ProbeCalls(tuple(Probe(c, p.expect, p.within) for c, p in pairs))
            case PathRow(path=path, order=order):
                for step in path:
                    _check_name(step, what.tool_set)
                steps = tuple(Step(step.name, step.arguments) for step in path)
                return CallPath(steps=steps, order=order)
            case EnvironmentRow(environment=total):
                if not worlds_of(what.tool_set):
                    raise DataFileError(
                        "expected an OpenEnv environment with `world` for the scorer "
                        "`environment`, found none"
                    )
                return EnvironmentReward(total)
            case JudgeRow(judge=criteria):
                return Judge(
                    chat=chat_tools(self.judge, "judge"),
                    criteria=criteria,
                    prompt=self.judge.prompt or JUDGE_PROMPT,
                    times=self.judge.times,
                    tie=self.judge.tie,
                    expected=what.answer,
                )

    def _function(self, row: FunctionRow, what: Scored) -> EpisodeScorer:
        file, _, name = row.function.partition(":")
        name = name or _FUNCTION
        folder = self._folder(self.folder / file)
        takes = _taken(folder, file, name, row)
        if not row.trusted:
            spec = ToolSpec(name=name, description="", parameters={"type": "object"})
            tools = ToolSet(
                tools=(spec,),
                sources=(folder.text,),
                functions=(name,),
                modules=folder.modules,
                files=folder.files,
            )
            return FunctionScorer(
                tools=tools, takes=takes, expected=what.answer, arguments=row.arguments
            )
        if not self.trusted:
            raise DataFileError(
                f"expected env.trusted_scorers = true for the trusted scorer {row.function}, found "
                "false: it would run with all rights of the worker; set the key, or leave out "
                "`trusted`"
            )
        if len(folder.modules) > 1:
            raise DataFileError(
                f"expected a trusted scorer that imports nothing from its folder, found "
                f"{', '.join(sorted(folder.modules.keys() - {folder.name}))}: install it as a "
                "package, or leave out `trusted`"
            )
        return TrustedScorer(
            source=folder.text,
            path=str((self.folder / file).resolve()),
            function=name,
            takes=takes,
            limit_s=self.limit_s,
            expected=what.answer,
            arguments=row.arguments,
        )

    def _folder(self, path: Path) -> Folder:
        key = str(path)
        if key not in self._read:
            self._read[key] = read_folder(path)
        return self._read[key]


def worlds_of(tool_set: ToolSet) -> list[OpenEnvEndpoint]:
    """Return the OpenEnv environments of a tool set that are the world of its task."""
    ends = [part.endpoint for part in (tool_set.parts or (tool_set,))]
    return [end for end in ends if isinstance(end, OpenEnvEndpoint) and end.world]


def answer_scorer(what: Scored, match: str = "") -> TextScorer | NumberScorer:
    """Return the scorer of a task's `answer`. Raises DataFileError if it is no number."""
    answer, match = what.answer, match or what.match
    assert answer is not None, "the caller has looked"
    if match != "numeric":
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return TextScorer(text, contains=match == "contains")
    expected = whole_number(answer) if isinstance(answer, str) else float(answer)
    if expected is None or not math.isfinite(expected):
        raise DataFileError(
            f"expected a number in `answer` for the scorer `numeric`, found {answer!r}: correct "
            "it, or use the scorer `exact`"
        )
    return NumberScorer(expected, what.tolerance)


def _taken(folder: Folder, file: str, name: str, row: FunctionRow) -> frozenset[str]:
    """Return the arguments of GIVEN that a scoring function takes. Raises DataFileError."""
    defined = folder.trees[folder.name].body
    found = next((n for n in defined if isinstance(n, Function) and n.name == name), None)
    if found is None:
        raise DataFileError(f"{file}: expected a function `{name}` at the top level, found none")
    given = found.args
    if given.posonlyargs or given.vararg:
        raise DataFileError(f"{file}: expected a function `{name}` whose arguments have names")
    known = [argument.arg for argument in (*given.args, *given.kwonlyargs)]
    optional = [argument.arg for argument in given.args[len(given.args) - len(given.defaults) :]]
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    optional += [argument.arg for argument, default in pairs if default is not None]
    for argument in known:
        if argument not in (*GIVEN, *row.arguments, *optional):
            raise DataFileError(
                f"{file}: expected arguments of `{name}` among {', '.join(GIVEN)} and those in "
                f"`arguments`, found {argument}: rename it, or give its value"
            )
    for argument in row.arguments:
        if argument not in known and given.kwarg is None:
            raise DataFileError(f"{file}: `{name}` takes no argument {argument!r}: correct it")
    return frozenset(name for name in GIVEN if name in known)


def _gold(row: GoldRow, what: Scored) -> GoldCalls:
    turns: list[tuple[CallRow, ...]] = []
    for item in row.gold:
        if isinstance(item, CallRow):
            turns = [tuple(call for call in row.gold if isinstance(call, CallRow))]
            break
        turns.append(item)
    messages = 1 + len(what.user.says) if what.user else 1
    is_fixed = what.user is None or what.user.simulated is None
    if len(turns) > 1 and (not is_fixed or len(turns) != messages):
        raise DataFileError(
            f"expected one list of gold calls, or one for each of {messages} messages of the user, "
            f"found {len(turns)}"
        )
    _check_readable(what.tool_set, probes=bool(row.probes))
    called = tuple(tuple(_call(call, what.tool_set) for call in turn) for turn in turns)
    probes = tuple(_call(call, what.tool_set) for call in row.probes)
    return GoldCalls(turns=called, probes=probes, ignore=row.ignore)


def _check_readable(tool_set: ToolSet, *, probes: bool) -> None:
    """Raise DataFileError if states are to be compared that cannot be read."""
    unreadable = [
        part.endpoint.place
        for part in (tool_set.parts or (tool_set,))
        if part.endpoint is not None and not isinstance(part.endpoint, OpenEnvEndpoint)
    ]
    if unreadable and not probes:
        raise DataFileError(
            f"expected `probes` with the gold calls, found none: the state of {unreadable[0]} "
            "cannot be read; give calls whose answers show what was done"
        )


def _call(row: CallRow, tool_set: ToolSet) -> ToolCall:
    spec = _check_name(row, tool_set)
    if fault := check_arguments(spec, row.arguments):
        raise DataFileError(f"call of {row.name}: {fault}")
    return ToolCall(name=row.name, arguments=row.arguments)


def _check_name(row: CallRow, tool_set: ToolSet) -> ToolSpec:
    spec = tool_set.find(row.name)
    if spec is None:
        known = ", ".join(tool.name for tool in tool_set.tools)
        raise DataFileError(f"expected a call of one of {known}, found {row.name}: correct it")
    return spec
