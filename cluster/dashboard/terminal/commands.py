"""What `trialrun episodes ls|diff|grep|tail|export|failures` do; the same filters, index and code
as the dashboard's.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cluster.dashboard.episodes.diffs import diff_of
from cluster.dashboard.episodes.episode_rows import rows_for
from cluster.dashboard.episodes.exports import episode_lines, row_lines, write_parquet
from cluster.dashboard.episodes.failures import failures_of
from cluster.dashboard.episodes.paging import Question
from cluster.dashboard.episodes.searching import Search, Wanted, check_groups
from cluster.dashboard.episodes.stored import find_stored
from cluster.dashboard.filters.compiling import Compiled, check_pattern, compile_filter
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.models.episodes import EpisodeRow, SearchHit, SearchProgress
from cluster.dashboard.terminal.opened import OneRun, open_run
from cluster.dashboard.terminal.printing import (
    episode_line,
    episode_table,
    failure_table,
    hit_line,
    print_diff,
)
from envs.errors import ConfigError, MissingError

_BLOCK = 500
_WIDE = 200


def list_episodes(path: Path, filter_text: str, sort: str, limit: int, *, as_json: bool) -> None:
    """Print the episodes that match as a table, or as one JSON object."""
    with open_run(path, os.environ) as run:
        question = Question.of(filter_text, sort, "")
        run.read(details=question.condition.details or question.sort.field.details)
        rows, total = _rows(run, question, limit)
    if as_json:
        content = {"episodes": [row.model_dump(mode="json") for row in rows], "total": total}
        _write(json.dumps(content))
        return
    title = f"{len(rows)} of {total:,} episodes of {path}"
    _console().print(episode_table(rows, f"{title}: {filter_text}" if filter_text else title))


def _rows(run: OneRun, question: Question, limit: int) -> tuple[list[EpisodeRow], int]:
    condition = question.condition
    with run.index.cursor() as cursor:
        found = rows_of(cursor, *question.page(run.index.episodes, limit))
        total = rows_of(
            cursor,
            f"SELECT count(*) FROM {condition.tables} WHERE {condition.sql}",
            condition.parameters,
        )[0][0]
        return rows_for(cursor, [uid for uid, _ in found[:limit]]), total


def show_failures(path: Path, filter_text: str, *, as_json: bool) -> None:
    """Print what failed, by reason and with an example."""
    with open_run(path, os.environ) as run:
        condition = compile_filter(filter_text)
        run.read(details=True)
        with run.index.cursor() as cursor:
            found = failures_of(cursor, condition)
    if as_json:
        _write(found.model_dump_json())
        return
    _console().print(failure_table(found))


def diff_episodes(path: Path, episodes: Sequence[str], *, as_json: bool) -> None:
    """Print where episodes, named by id or unique prefix, part."""
    with open_run(path, os.environ) as run:
        run.read(details=False)
        with run.index.cursor() as cursor:
            names = [_full_name(cursor, name) for name in episodes]
            found = diff_of([find_stored(cursor, run.index.files, name) for name in names])
    if as_json:
        _write(found.model_dump_json())
        return
    print_diff(found, _console())


def _full_name(cursor: object, prefix: str) -> str:
    found = rows_of(
        cursor,  # type: ignore[arg-type]
        "SELECT DISTINCT episode FROM episodes WHERE starts_with(episode, ?) "
        "ORDER BY episode <> ?, episode LIMIT 3",
        (prefix, prefix),
    )
    names = [name for (name,) in found]
    if not names:
        raise MissingError(f"expected an episode called {prefix!r} or longer, found none")
    if len(names) > 1 and names[0] != prefix:
        raise ConfigError(f"several episodes begin with {prefix!r}, such as {', '.join(names)}")
    return names[0]


def grep_episodes(path: Path, wanted: Wanted, filter_text: str, *, as_json: bool) -> None:
    """Print each hit in the texts of the matching episodes when it is found, the newest first."""
    if wanted.pattern and not check_groups(wanted.text):
        raise ConfigError("named groups are not offered: write (...) or (?:...) instead")
    console = Console(highlight=False)
    with open_run(path, os.environ) as run:
        if wanted.pattern:
            check_pattern(wanted.text)
        condition = compile_filter(filter_text)
        run.read(details=condition.details)
        for line in Search(run.index, wanted, condition).lines():
            match line:
                case SearchHit() if as_json:
                    _write(line.model_dump_json())
                case SearchHit():
                    console.print(hit_line(line), soft_wrap=True)
                case SearchProgress(stopped=stopped) if stopped:
                    sys.stderr.write(f"stopped: {stopped}\n")
                case _:
                    pass


def tail_episodes(path: Path, filter_text: str, count: int, *, follow: bool, as_json: bool) -> None:
    """Print the newest matching episodes, the newest last, and those that come."""
    with open_run(path, os.environ) as run:
        condition = compile_filter(filter_text)
        run.read(details=condition.details)
        rows, _ = _rows(run, Question.of(filter_text, "-uid", ""), count)
        seen = run.index.episodes
        _print_lines(rows[::-1], as_json=as_json)
        for _ in run.follow(details=condition.details) if follow else ():
            _print_lines(_since(run, condition, seen), as_json=as_json)
            seen = run.index.episodes


def _since(run: OneRun, condition: Compiled, first: int) -> list[EpisodeRow]:
    condition = condition.and_("e.uid >= ?", first)
    with run.index.cursor() as cursor:
        found = rows_of(
            cursor,
            f"SELECT e.uid FROM {condition.tables} WHERE {condition.sql} ORDER BY e.uid",
            condition.parameters,
        )
        uids = [uid for (uid,) in found]
        parts = [uids[at : at + _BLOCK] for at in range(0, len(uids), _BLOCK)]
        return [row for part in parts for row in rows_for(cursor, part)]


def _print_lines(rows: Sequence[EpisodeRow], *, as_json: bool) -> None:
    for row in rows:
        _write(row.model_dump_json() if as_json else episode_line(row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is exported."""

    filter_text: str
    whole: bool
    """Whole episodes, or the rows of the table."""
    tokens: bool
    """In JSON also the columns of tokens."""


def export_episodes(path: Path, target: Path, wanted: Export) -> int:
    """Write the matching episodes to the new file `target`; return its size in bytes.

    Raises ConfigError for another ending than .parquet and .jsonl, or where the file exists.
    """
    if target.suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"expected a file that ends in .parquet or .jsonl, found {target}")
    if target.exists():
        raise ConfigError(f"expected the name of a new file, found that {target} exists")
    if not target.absolute().parent.is_dir():
        raise MissingError(f"expected the folder {target.absolute().parent}, found none")
    with open_run(path, os.environ) as run:
        condition = compile_filter(wanted.filter_text)
        run.read(details=condition.details or not wanted.whole)
        if target.suffix == ".parquet":
            folder = target.absolute().parent
            write_parquet(run.index, condition, folder, whole=wanted.whole).replace(target)
        else:
            lines = (
                episode_lines(run.index, condition, tokens=wanted.tokens)
                if wanted.whole
                else row_lines(run.index, condition)
            )
            with target.open("xb") as file:
                file.writelines(lines)
    return target.stat().st_size


def _console() -> Console:
    """Return the terminal; what is no terminal gets lines as long as they are."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
