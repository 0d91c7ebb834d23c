"""Fields of episodes that filters, sorting, facets and histograms use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Type = Literal["number", "text", "flag"]

FLAGS: Mapping[str, str] = {
    "garbled": "the policy wrote replacement, control or private-use characters",
    "loop": "the policy repeated a turn or a call, or the same few words",
    "truncated": "a turn or the episode ended at a limit",
    "answer_in_tool": "the answer stands literally in a tool's output",
    "trial_touched_state": "trial calls ran in the session that is graded",
}
"""What the flags mean, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field: `sql` is an expression over `e` (episodes) and `d` (details)."""

    name: str
    sql: str
    type: Type
    meaning: str
    details: bool = False
    """Whether `d` is needed."""
    single: bool = False
    """Whether it is stored as float32, so that a number is rounded before it is compared."""
    values: tuple[str, ...] = ()
    """All values of a text, where they are known."""


def _text(name: str, meaning: str, sql: str = "", *values: str) -> Field:
    return Field(name=name, sql=sql or f"e.{name}", type="text", meaning=meaning, values=values)


def _number(name: str, meaning: str, sql: str = "", *, single: bool = False) -> Field:
    return Field(name=name, sql=sql or f"e.{name}", type="number", meaning=meaning, single=single)


def _detail(name: str, meaning: str, sql: str = "", *, type: Type = "number") -> Field:
    single = name.endswith("_s")
    return Field(
        name=name,
        sql=sql or f"d.{name}",
        type=type,
        meaning=meaning,
        details=True,
        single=single and not sql,
    )


_OUTCOMES = (
    *("answered", "truncated", "policy_error", "infra_failed", "deadline", "cancelled"),
    "prompt_too_long",
)
_STATES = ("stored", "finished", "trained", "dropped", "retried")
STALENESS = (
    "CASE WHEN e.step IS NULL OR e.oldest_version < 0 THEN NULL "
    "ELSE greatest(e.step - 1 - e.oldest_version, 0) END"
)
"""As the learner's metric has it: versions behind the weights at the start of the step."""

_FIELDS = (
    _text("episode", "Id of the episode."),
    _text("group", "Name of its group.", "e.grp"),
    _text("task", "Id of its task."),
    _text("environment", "Name of the environment."),
    _text("split", "Split of the task."),
    _text("mode", "How it acts.", "", "direct", "trial", "free"),
    _text("source", "`policy`, or the name of a teacher."),
    _text("outcome", "How it ended.", "", *_OUTCOMES),
    _text("state", "State in the ledger.", "", *_STATES),
    _text("reason", "Why it was dropped or retried; empty otherwise."),
    _number("attempt", "Number of the attempt, from 0."),
    _number("sample_index", "Position in its group."),
    _number("reward", "Reward; null for failures of the infrastructure.", single=True),
    _number("version", "Oldest policy version that sampled it; -1 if none.", "e.oldest_version"),
    _number("staleness", "Versions behind at its step.", STALENESS),
    _number("step", "Step that trained on it or left it out."),
    _number("advantage", "Advantage that the learner gave it.", single=True),
    _number("trial_advantage", "Advantage of its trials.", single=True),
    _number("tokens", "Tokens, those of prompt and observations included."),
    _number("wall_s", "Seconds from start to end.", single=True),
    _number("started_at", "Start in Unix seconds."),
    _number("uid", "Order in which this dashboard read it."),
    _detail("turns", "Turns of the policy."),
    _detail("calls", "Tool calls.", "(d.trial_calls + d.execution_calls)"),
    _detail("trial_calls", "Tool calls of trials."),
    _detail("execution_calls", "Tool calls of the execution."),
    _detail("tool_errors", "Calls with a tool error or a timeout."),
    _detail("infra_errors", "Calls that could not be run."),
    _detail("policy_errors", "Turns that were not valid."),
    _detail("sampled_tokens", "Tokens that the policy sampled."),
    _detail("generate_s", "Seconds of generation."),
    _detail("tool_s", "Seconds in tools."),
    _detail("queue_s", "Seconds of waiting in the engine's queue."),
    _detail("worker", "Worker that ran it.", type="text"),
    _detail("answer", "Its answer, the first 200 characters.", type="text"),
    _detail("question", "Its question, the first 200 characters.", type="text"),
    _detail("error", "Error text of a failed episode.", type="text"),
    *(_detail(name, f"Flag: {meaning}.", type="flag") for name, meaning in FLAGS.items()),
)
FIELDS: Mapping[str, Field] = {field.name: field for field in _FIELDS}
"""All plain fields, by name."""

SYNONYMS: Mapping[str, str] = {
    "id": "episode",
    "grp": "group",
    "env": "environment",
    "oldest_version": "version",
    "seconds": "wall_s",
    "errors": "tool_errors",
    "sample": "sample_index",
    "status": "state",
    "length": "tokens",
}
"""Other names under which fields are known."""

FACETS = (
    *("outcome", "state", "reason", "split", "mode", "source", "environment"),
    *("worker", "flag", "tool"),
)
"""Fields whose values are counted; `flag` and `tool` count episodes that have one."""
HISTOGRAMS = ("reward", "wall_s", "tokens", "advantage", "staleness", "turns", "tool_s")

TOOL_FIGURES: Mapping[str, str] = {
    "calls": "count(*)",
    "errors": "count(*) FILTER (status = 'tool_error' OR status = 'timeout')",
    "timeouts": "count(*) FILTER (status = 'timeout')",
    "infra": "count(*) FILTER (status = 'infra_error')",
    "seconds": "sum(seconds)",
    "slowest": "max(seconds)",
}
"""Figures of `tool("x")`: what an episode's calls of the tool add up to."""
PHASES: Mapping[str, tuple[str, ...]] = {
    "trial": ("calls", "errors", "turns", "tokens"),
    "experience": ("turns", "tokens"),
    "execution": ("calls", "errors", "turns", "tokens"),
}
"""Figures of `phase("x")`, each a column of the details."""
FUNCTIONS: Mapping[str, tuple[Type, str, str]] = {
    "tool": ("number", 'tool("search").errors > 0', "Figures of one tool's calls."),
    "phase": ("number", 'phase("trial").calls = 0', "Figures of a phase."),
    "part": ("number", 'part("answer") < 0.5', "A part of the reward, by name."),
    "tag": ("text", 'tag("depth") = "3"', "A tag of the task, by name."),
    "flag": ("flag", 'flag("loop")', "Whether the episode has a flag."),
}
"""Functions: type, example, meaning."""
EXAMPLES = (
    'reward<0.2 and tool("search").errors>0 and phase("trial").calls=0',
    "outcome=truncated and tokens>4000",
    'state=dropped and reason="zero_variance"',
    'loop or garbled and not mode="direct"',
    'error ~ "connection"',
    'split in ("test", "unseen") and part("answer")>0.5',
)
