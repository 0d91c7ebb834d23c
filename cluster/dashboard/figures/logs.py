"""Lines of logs: the newest that match, from one run or several, in the order of their times."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import merge
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dashboard.models.runs import LogLine, LogPage
from rollout.store.regular_files import reading
from rollout.store.run_layout import RunLayout

_BLOCK = 1 << 20
_LONGEST = 4_000
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:[.,]\d+)?(?:Z|\+00:00)?\s?")
_ERROR = re.compile(r"\b(error|failed|traceback|exception)\b", re.IGNORECASE)
_WARNING = re.compile(r"\b(warning|lost|retried|dropped|refused)\b", re.IGNORECASE)
_LOOKED_AT = 200
"""Last lines in which an error is looked for."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """A log, and how its lines are named."""

    path: Path
    source: str


def log_page(files: Sequence[LogFile], pattern: str, before: int | None, limit: int) -> LogPage:
    """Return the newest lines that match, oldest first; `before` is a number of an older answer.

    Lines of several logs are merged by time; a line without a time keeps that of the line before.
    `before` counts lines from the start of the merged logs.
    """
    merged = list(merge(*(_lines(file) for file in files), key=lambda line: line.at or 0.0))
    numbered = list(enumerate(merged, 1))
    if pattern:
        texts = pa.array([line.text for line in merged], pa.string())
        hits = pc.match_substring_regex(texts, pattern, ignore_case=True)  # type: ignore[attr-defined]
        numbered = [pair for pair, hit in zip(numbered, hits.to_pylist(), strict=True) if hit]
    if before is not None:
        numbered = [pair for pair in numbered if pair[0] < before]
    shown = numbered[-limit:]
    more = len(numbered) > len(shown)
    return LogPage(
        lines=[line for _, line in shown],
        more=more,
        before=shown[0][0] if more and shown else None,
    )


def last_error(layout: RunLayout) -> str:
    """Return the last line of the log that speaks of an error; empty where none does."""
    tail = _tail(layout.log, _BLOCK // 8).splitlines()[-_LOOKED_AT:]
    found = next((line for line in reversed(tail) if level_of(line) == "error"), "")
    return _TIME.sub("", found, count=1)[:500]


def level_of(text: str) -> Literal["error", "warning", "info"]:
    """Guess how serious a line is: logs are what a command printed, without levels."""
    if _ERROR.search(text):
        return "error"
    return "warning" if _WARNING.search(text) else "info"


def _lines(file: LogFile) -> Iterator[LogLine]:
    at: float | None = None
    for number, text in enumerate(_whole(file.path).splitlines(), 1):
        match = _TIME.match(text)
        if match:
            at = _seconds(match[1])
        shown = text[match.end() :] if match else text
        yield LogLine(
            number=number,
            at=at,
            text=shown[:_LONGEST],
            source=file.source,
            level=level_of(shown[:_LONGEST]),
        )


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _whole(path: Path) -> str:
    return _tail(path, 32 * _BLOCK)


def _tail(path: Path, most: int) -> str:
    """Return the last `most` bytes of a file as text, from the start of a line."""
    try:
        with reading(path) as file:
            size = file.seek(0, 2)
            file.seek(max(size - most, 0))
            content = file.read(most)
    except OSError:
        return ""
    if size > most:
        content = content[content.find(b"\n") + 1 :]
    return content.decode("utf-8", "replace")
