"""Episodes as lines and tables of a terminal. No text of a model or a tool can move its cursor."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.dashboard.models.detail import Delta, Diff
from cluster.dashboard.models.episodes import EpisodeRow, Failures, SearchHit
from rollout.transcript import inert

NOT_MEASURED = "-"
_QUESTION = 40
_ERROR = 100
_TURN = 300


def plain(text: str, longest: int) -> str:
    """Return a text on one line, its control characters escaped, cut after `longest`."""
    line = " ".join(inert(text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def number(value: float | None, form: str = ".2f") -> str:
    """Return a number; what is missing is shown as such."""
    return NOT_MEASURED if value is None else f"{value:{form}}"


def calls_of(row: EpisodeRow) -> int | None:
    """Return the tool calls of an episode; None until its details are read."""
    if row.trial_calls is None or row.execution_calls is None:
        return None
    return row.trial_calls + row.execution_calls


def episode_table(rows: Sequence[EpisodeRow], title: str) -> Table:
    """Return episodes as a table."""
    table = Table(title=Text(title), box=None, pad_edge=False, title_justify="left")
    for name in ("episode", "step", "state", "outcome"):
        table.add_column(name, no_wrap=True)
    for name in ("reward", "tokens", "calls", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("flags")
    table.add_column("question", no_wrap=True)
    for row in rows:
        state = f"{row.state} ({row.reason})" if row.reason else row.state
        cells = (
            _name(row),
            number(row.step, "d"),
            state,
            row.outcome,
            number(row.reward),
            f"{row.tokens:,}",
            number(calls_of(row), "d"),
            number(row.tool_errors, "d"),
            ", ".join(row.flags or ()),
            row.question or "",
        )
        table.add_row(*(Text(plain(cell, _QUESTION)) for cell in cells))
    return table


def episode_line(row: EpisodeRow) -> str:
    """Return an episode as one line."""
    return "  ".join(
        (
            plain(_name(row), 60),
            f"{row.state:<8} {row.outcome:<12}",
            f"reward {number(row.reward)}",
            f"tokens {row.tokens}",
            f"calls {number(calls_of(row), 'd')}",
            f"errors {number(row.tool_errors, 'd')}",
            plain(row.error or row.question or "", _ERROR),
        )
    ).rstrip()


def hit_line(hit: SearchHit) -> Text:
    """Return a hit of a search as one line, with what was found set off."""
    text = Text(f"{plain(hit.episode, 60)}  {plain(hit.part, 40)}  ")
    text.append(inert(hit.before).replace("\n", " "))
    text.append(inert(hit.match).replace("\n", " "), style="bold red")
    text.append(inert(hit.after).replace("\n", " "))
    return text


def failure_table(found: Failures) -> Table:
    """Return failures by reason as a table."""
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.title = Text(f"what failed of {found.total:,} episodes")
    for name in ("what", "reason"):
        table.add_column(name)
    for name in ("episodes", "share"):
        table.add_column(name, justify="right")
    table.add_column("example", overflow="fold")
    table.add_column("error", overflow="fold")
    for row in found.rows:
        share = f"{row.episodes / found.total:.1%}" if found.total else NOT_MEASURED
        cells = (row.what, row.reason, f"{row.episodes:,}", share, row.example, row.error)
        table.add_row(*(Text(plain(cell, _ERROR)) for cell in cells))
    return table


def print_diff(found: Diff, console: Console) -> None:
    """Print where episodes part, and what that changed."""
    names = [_name(row) for row in found.rows]
    if not found.same_task:
        console.print(Text("They are episodes of different tasks."))
    first = found.first_divergent_turn
    if first is None:
        console.print(Text("Their turns are the same."))
    else:
        token = found.first_divergent_token.position
        at = "" if token is None else f"; the tokens part at {token}"
        console.print(Text(f"They part in turn {first}{at}:"))
        for name, side in zip(names, found.turns[first].sides, strict=True):
            text = "(no such turn)" if side is None else side.text
            console.print(Text(f"  {plain(name, 60)}: {plain(text, _TURN)}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(Text(plain(name, 30)), justify="right")
    table.add_column("change", justify="right")
    deltas: list[Delta] = [*found.reward_parts, *found.calls, *found.numbers]
    for delta in deltas:
        values = [Text(number(value, ".4g")) for value in delta.values]
        table.add_row(Text(plain(delta.name, 40)), *values, Text(number(delta.change, "+.4g")))
    console.print(table)


def _name(row: EpisodeRow) -> str:
    return f"{row.episode} (attempt {row.attempt + 1})" if row.attempt else row.episode
