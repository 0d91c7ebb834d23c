"""Search through the texts of stored episodes, the newest first, in small steps.

Plain text is looked for in the bytes of the segments, which hold texts as they are, and only
messages with a hit are decoded. A regular expression needs every message decoded, which is slower.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.dashboard.episodes.transcripts import TEXT_COLUMNS, texts_of
from cluster.dashboard.filters.compiling import Compiled
from cluster.dashboard.index.run_index import RunIndex
from cluster.dashboard.index.segment_files import Place
from cluster.dashboard.models.episodes import SearchHit, SearchProgress
from envs.errors import StoreError

LONGEST_SECONDS = 120.0
_AROUND = 80
_HITS_PER_EPISODE = 3
_BLOCK_BYTES = 8 << 20
_MESSAGES_AT_ONCE = 64
_COLUMNS = ("episode", "attempt", "group", "outcome", "reward", *TEXT_COLUMNS)

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is looked for."""

    text: str
    pattern: bool
    """Whether `text` is a regular expression (RE2)."""
    ignore_case: bool
    limit: int
    """Hits after which the search ends."""

    def spans(self, text: str) -> Iterator[Span]:
        """Yield where `text` has what is looked for."""
        if self.pattern:
            yield from _pattern_spans(self, text)
            return
        place = 0
        whole, sought = _folded(text, self), _folded(self.text, self)
        while (place := whole.find(sought, place)) >= 0:
            yield place, place + len(self.text)
            place += max(len(sought), 1)


def _folded(text: str, wanted: Wanted) -> str:
    """Lower only letters of ASCII, so that positions stay those of the text."""
    return text.translate(_LOWER) if wanted.ignore_case else text


_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _pattern_spans(wanted: Wanted, text: str) -> Iterator[Span]:
    """RE2 has linear time, Python's `re` has not: its groups say where the hit is."""
    array = pa.array([text])
    pattern = f"(?s)^(?P<before>.*?)(?P<hit>{wanted.text})"
    flags = "(?i)" if wanted.ignore_case else ""
    try:
        found = pc.extract_regex(array, flags + pattern)[0].as_py()  # type: ignore[attr-defined]
    except pa.ArrowInvalid:  # the pattern has a group of one of these names
        return
    if found is not None:
        start = len(found["before"])
        yield start, start + len(found["hit"])


@dataclass(slots=True)
class Search:
    """One search; `lines` yields hits and progress until it ends."""

    index: RunIndex
    wanted: Wanted
    condition: Compiled
    _hits: int = 0
    _looked: int = 0
    _total: int = 0
    _started: float = field(default_factory=time.monotonic)

    def lines(self) -> Iterator[SearchHit | SearchProgress]:
        """Yield each hit when it is found, and progress at least for every few MiB."""
        with self.index.cursor() as cursor:
            segments = _matching(cursor, self.condition)
        self._total = sum(len(rows.uids) for rows in segments)
        yield self._progress("progress")
        for rows in segments:
            for step in self._steps(rows):
                yield from step
                if self._hits >= self.wanted.limit:
                    yield self._end(f"the first {self.wanted.limit} hits")
                    return
                if time.monotonic() - self._started > LONGEST_SECONDS:
                    yield self._end(f"it took longer than {LONGEST_SECONDS:g} s: narrow the filter")
                    return
                yield self._progress("progress")
        yield self._end("")

    def _progress(self, kind: str, stopped: str = "") -> SearchProgress:
        return SearchProgress(
            type="end" if kind == "end" else "progress",
            episodes=self._looked,
            of=self._total,
            hits=self._hits,
            stopped=stopped,
        )

    def _end(self, stopped: str) -> SearchProgress:
        return self._progress("end", stopped)

    def _steps(self, rows: "_Rows") -> Iterator[list[SearchHit]]:
        """Yield the hits of some messages of a segment at a time, the newest first."""
        for part in _blocks(rows, _MESSAGES_AT_ONCE if self.wanted.pattern else None):
            places = self._candidates(part)
            found: list[SearchHit] = []
            for place in places[::-1]:
                found += self._in_message(part, int(place))
                if self._hits >= self.wanted.limit:
                    break
            self._looked += len(part.uids)
            yield found

    def _candidates(self, part: "_Rows") -> npt.NDArray[np.int64]:
        """Return the messages that may have a hit."""
        starts = np.unique(part.places)
        if self.wanted.pattern:
            return starts
        low = int(starts[0])
        try:
            block = self.index.files.block(part.segment, low, int((part.places + part.sizes).max()))
        except StoreError:
            return starts[:0]
        positions = np.fromiter(_byte_hits(block, self.wanted), np.int64) + low
        inside = np.searchsorted(starts, positions, side="right") - 1
        return starts[np.unique(inside[inside >= 0])]

    def _in_message(self, part: "_Rows", place: int) -> list[SearchHit]:
        chosen = np.flatnonzero(part.places == place)
        where = Place(part.segment, place, int(part.sizes[chosen[0]]))
        try:
            batch = self.index.files.batch(where)
        except StoreError:
            return []
        found: list[SearchHit] = []
        for index in chosen:
            row = int(part.rows[index])
            if row < batch.num_rows:
                record = batch.slice(row, 1).select(list(_COLUMNS)).to_pylist()[0]
                found += self._in_episode(int(part.uids[index]), record)
        return found[: self.wanted.limit]

    def _in_episode(self, uid: int, record: dict[str, Any]) -> list[SearchHit]:
        seen: set[str] = set()
        hits: list[SearchHit] = []
        for part, text in texts_of(record):
            if text in seen:  # messages repeat what turns and results say
                continue
            seen.add(text)
            if part.startswith("messages/") and hits:
                break
            hits += [_hit(uid, record, part, text, s) for s in islice(self.wanted.spans(text), 1)]
            if len(hits) >= _HITS_PER_EPISODE:
                break
        self._hits += len(hits)
        return hits


@dataclass(frozen=True, slots=True)
class _Rows:
    """Episodes of one segment, by their place."""

    segment: str
    uids: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    def part(self, start: int, end: int) -> "_Rows":
        """Return some of them."""
        columns = (self.uids, self.places, self.sizes, self.rows)
        return _Rows(self.segment, *(column[start:end] for column in columns))


def _matching(cursor: duckdb.DuckDBPyConnection, condition: Compiled) -> list[_Rows]:
    """Return the episodes that match, by segment, the newest segment first."""
    found = cursor.sql(
        f"SELECT e.segment, e.uid, e.place, e.nbytes, e.row FROM {condition.tables} "
        f"WHERE {condition.sql} ORDER BY e.segment, e.place, e.row",
        params=list(condition.parameters),
    ).to_arrow_table()
    if found.num_rows == 0:
        return []
    names = found["segment"].combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    columns = [
        found[name].to_numpy().astype(np.int64) for name in ("uid", "place", "nbytes", "row")
    ]
    segments = [
        _Rows(names.dictionary[int(codes[start])].as_py(), *(c[start:end] for c in columns))
        for start, end in pairwise(edges)
    ]
    return segments[::-1]


def _blocks(rows: _Rows, most: int | None) -> Iterator[_Rows]:
    """Split a segment's episodes into stretches of bounded bytes, the last first."""
    end = len(rows.uids)
    while end:
        last = int(rows.places[end - 1] + rows.sizes[end - 1])
        start = int(np.searchsorted(rows.places[:end], last - _BLOCK_BYTES))
        start = min(start, end - 1)
        if most is not None:
            start = max(start, end - most)
        # Episodes of one message stay together.
        start = int(np.searchsorted(rows.places[:end], rows.places[start]))
        yield rows.part(start, end)
        end = start


def _byte_hits(block: bytes, wanted: Wanted) -> Iterator[int]:
    sought = wanted.text.encode("utf-8", "surrogatepass")
    if wanted.ignore_case:
        block, sought = block.lower(), sought.lower()
    place = -1
    find: Callable[[bytes, int], int] = block.find
    while (place := find(sought, place + 1)) >= 0:
        yield place


def _hit(uid: int, record: dict[str, Any], part: str, text: str, span: Span) -> SearchHit:
    start, end = span
    return SearchHit(
        uid=uid,
        episode=record["episode"],
        attempt=record["attempt"],
        group=record["group"],
        outcome=record["outcome"],
        reward=record["reward"],
        part=part,
        before=text[max(start - _AROUND, 0) : start],
        match=text[start : min(end, start + 500)],
        after=text[end : end + _AROUND],
    )


def check_groups(pattern: str) -> bool:
    """Whether a pattern names no group, whose names could be those that a search uses."""
    return re.search(r"\(\?P?<", pattern) is None
