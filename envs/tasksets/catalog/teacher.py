"""The scripted teacher of the catalog: a careful policy that is sometimes lazy or forgetful.

It has no hidden information. Each turn is a pure function of the conversation so far and the
episode's seed, so its episodes use the same runner and tools as those of the policy that is trained
on them. It is imperfect on purpose: RL later corrects mostly its laziness.

Every turn restates what the next decision needs, so that a tiny model finds it in the text just
before: during trials the last result and the open goals; in the execution the line of the
experience that states how the tool is called.
"""

from collections.abc import Iterable, Sequence
from random import Random

from envs.messages import Message
from envs.seeds import stable_hash
from envs.tasksets.catalog.conversation import Goal, KnownTool, View, read
from envs.tasksets.catalog.quirks import CLOSED, OPENING

LAZY = 0.5
"""Chance to stop trying and to guess, after a trial that leaves the only goal open. With several
goals it is divided by their number.
"""
FORGETFUL = 0.1
"""Chance to ignore a known quirk in the first call of an execution step."""
SCARCE = 0.3
"""Share of teacher episodes with few trials or none."""
SCARCE_CALLS = 3
"""Largest trial budget of these episodes."""


def trial_reply(messages: Sequence[Message], seed: int) -> str:
    """Return the trial teacher's next turn: probe in order, repair, stop when found, execute."""
    view = read(messages, executing=False)
    rng = Random(stable_hash("catalog teacher", seed, view.turns))
    return _execution_turn(view, rng) if view.executing else _trial_turn(view, rng)


def direct_reply(messages: Sequence[Message], seed: int) -> str:
    """Return the direct teacher's next turn: call the tools that the docs suggest, then answer."""
    view = read(messages, executing=True)
    rng = Random(stable_hash("catalog direct teacher", seed))
    assigned = zip(view.goals, _assigned(view, rng), strict=True)
    view.chosen = {goal.label: tool.name for goal, tool in assigned}
    return _execution_turn(view, rng)


def sample_trial_calls(seed: int, full: int) -> int:
    """Sample the trial budget of a teacher episode: mostly `full`, sometimes too small."""
    rng = Random(stable_hash("catalog teacher budget", seed))
    return min(full, rng.randint(0, SCARCE_CALLS)) if rng.random() < SCARCE else full


def _trial_turn(view: View, rng: Random) -> str:
    """Return a turn of the trial phase.

    In order: conclude if no trial is left; make the first call; open a closed tool; repeat a
    refused call with its repair; conclude if every goal is served; else try the next tool, or be
    lazy and conclude with a guess.
    """
    last = view.last
    if view.blocked:
        return _conclude("", view, rng)
    if last is None:
        return f"try 1. {view.tools[0].call(view.probe)}"
    if last.closed and not last.opened:
        return f"{CLOSED}: try {last.number}. {last.call(OPENING)}"
    if view.trouble or not last.result:
        return f"{view.trouble or OPENING}: try {last.number}. {last.call(view.probe)}"
    still_open = [goal for goal in view.goals if view.serving(goal) is None]
    seen = f"got {view.seen(last.result)}{f', off by {last.offset}' if last.offset else ''}"
    note = f"{seen}, want {_labels(_open_before(view, last))}: "
    if not still_open:
        return _conclude(f"{note}done {last.number}. ", view, rng)
    if any(view.serving(goal) is last for goal in view.goals):
        found = _clauses((goal, tool) for goal in view.goals if (tool := view.serving(goal)))
        note += f"found {found}; want {_labels(still_open)}: "
    untried = [tool for tool in view.tools if not tool.result]
    if not untried or rng.random() < LAZY / len(view.goals):
        return _conclude(note, view, rng)
    return f"{note}try {untried[0].number}. {untried[0].call(view.probe)}"


def _open_before(view: View, last: KnownTool) -> list[Goal]:
    """Return the goals that no tool served before `last` answered."""
    return [goal for goal in view.goals if view.serving(goal) in (None, last)]


def _labels(goals: Sequence[Goal]) -> str:
    return " ".join(goal.label for goal in goals)


def _conclude(note: str, view: View, rng: Random) -> str:
    """Return a turn with the experience, one clause per goal; guesses are announced before it."""
    assigned = list(zip(view.goals, _assigned(view, rng), strict=True))
    guessed = [(goal, tool) for goal, tool in assigned if view.serving(goal) is None]
    known = _clauses(pair for pair in assigned if pair not in guessed)
    clauses = [*(_clause(*pair) for pair in guessed), *([known] if known else [])]
    verdict = "guess " + "".join(f"{tool.number}. " for _, tool in guessed) if guessed else ""
    return f"{note}{verdict}<experience>{'; '.join(clauses)}</experience>"


def _clauses(assigned: Iterable[tuple[Goal, KnownTool]]) -> str:
    """Return the clauses, latest find first, so that each list adds one clause at the front."""
    latest_first = sorted(assigned, key=lambda pair: -pair[1].number)
    return "; ".join(_clause(goal, tool) for goal, tool in latest_first)


def _clause(goal: Goal, tool: KnownTool) -> str:
    return _known_as(goal, tool, tool.repair)


def _known_as(goal: Goal, tool: KnownTool, remark: str) -> str:
    """Return which tool serves `goal`, with a remark on how to call it.

    The wording is the same when the tool is found, in the experience and before a call, so that a
    model can copy what followed the goal's label earlier.
    """
    return f"{goal.label} {tool.number}. {tool.name}{f', {remark}' if remark else ''}"


def _execution_turn(view: View, rng: Random) -> str:
    step = len(view.executed)
    value = view.executed[-1] if view.executed else view.value
    remarks = [view.last.repair] if view.last and _was_converted(view) else []
    if step == len(view.goals):
        return "".join(f"{text}: " for text in remarks) + f"<answer>{value}</answer>"
    goal = view.goals[step]
    name = view.chosen.get(goal.label, "")
    tool = next((tool for tool in view.tools if tool.name == name), view.tools[0])
    plain = not view.trouble and rng.random() < FORGETFUL
    opening = tool.closed and not tool.opened and not plain
    remark = view.trouble or (CLOSED if opening else "" if plain else tool.repair)
    remarks.append(_known_as(goal, tool, remark))
    return f"{', '.join(remarks)}: call {tool.call(OPENING if opening else value, plain=plain)}"


def _was_converted(view: View) -> bool:
    """Whether the current value is the last call's result, converted back from the tool's unit."""
    answered = bool(view.executed) and not view.trouble
    return answered and view.last is not None and view.last.offset > 0


def _assigned(view: View, rng: Random) -> list[KnownTool]:
    """Return a tool for each goal: the one that serves it, else a guess without repetition."""
    assigned: list[KnownTool] = []
    for goal in view.goals:
        tool = view.serving(goal) or _guess(view, goal, assigned, rng)
        assigned.append(tool)
    return assigned


def _guess(view: View, goal: Goal, taken: Sequence[KnownTool], rng: Random) -> KnownTool:
    """Guess a tool among those without a result: by its doc, else one with a vague doc."""
    free = [tool for tool in view.tools if tool not in taken]
    open_tools = [tool for tool in free if not tool.result] or free or view.tools
    named = [tool for tool in open_tools if tool.subject == goal.operation]
    vague = [tool for tool in open_tools if tool.subject in ("edit", "")]
    return rng.choice(named or vague or open_tools)
