"""Pages of the episode table: by key, not by number, and pinned to a snapshot.

A cursor holds the snapshot, the last row's value and `uid`, and a hash of what was asked. Rows that
are stored later have a higher `uid` than the snapshot, so they move nothing.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cluster.dashboard.filters.compiling import Compiled, compile_filter, field_named
from cluster.dashboard.filters.fields import Field
from cluster.dashboard.problems import ApiError, Place

DEFAULT_SORT = "-uid"
_LARGEST = 2**62


@dataclass(frozen=True, slots=True)
class Sort:
    """By which field a table is sorted; episodes without a value come last."""

    field: Field
    descending: bool

    @classmethod
    def of(cls, text: str) -> "Sort":
        """Read `reward`, or `-reward` for the largest first. Raises ApiError."""
        name = text.lstrip("+-")
        field = field_named(name, Place(len(text) - len(name), len(name)))
        return cls(field, text.startswith("-"))

    @property
    def order(self) -> str:
        """The SQL after ORDER BY."""
        way = "DESC" if self.descending else "ASC"
        return f"{self.field.sql} {way} NULLS LAST, e.uid {way}"

    def after(self, value: Any, uid: int) -> tuple[str, tuple[Any, ...]]:
        """Return the condition for rows that come after one, and its parameters."""
        sign, sql = "<" if self.descending else ">", self.field.sql
        if value is None:
            return f"{sql} IS NULL AND e.uid {sign} ?", (uid,)
        # Stored numbers are float32 in part, and a cursor holds them exactly.
        later = f"({sql} {sign} ? OR ({sql} = ? AND e.uid {sign} ?) OR {sql} IS NULL)"
        return later, (value, value, uid)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ends."""

    snapshot: int
    value: Any
    uid: int

    def text(self, asked: str) -> str:
        """Return the cursor as it stands in an address."""
        value = repr(self.value) if isinstance(self.value, float) else self.value
        kind = "f" if isinstance(self.value, float) else ""
        row = {"s": self.snapshot, "v": value, "t": kind, "u": self.uid, "q": _mark(asked)}
        return base64.urlsafe_b64encode(json.dumps(row).encode()).decode().rstrip("=")

    @classmethod
    def read(cls, text: str, asked: str) -> "Cursor":
        """Read what `text` wrote. Raises ApiError if it is of another question, or damaged."""
        wrong = ApiError(
            400, "bad-cursor", "the cursor is not of this filter and sort", "start without one"
        )
        try:
            content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            row = json.loads(content)
            value = float(row["v"]) if row["t"] == "f" else row["v"]
            found = cls(row["s"], value, row["u"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise wrong from error
        whole = [type(found.snapshot) is int, type(found.uid) is int, row.get("q") == _mark(asked)]
        plain = value is None or type(value) in (int, float, str, bool)
        if not all(whole) or not plain or not _small(found):
            raise wrong
        return found


@dataclass(frozen=True, slots=True)
class Question:
    """What a table is asked: a compiled filter, a sort, and the cursor of a page."""

    condition: Compiled
    sort: Sort
    asked: str
    cursor: Cursor | None

    @classmethod
    def of(cls, filter_text: str, sort_text: str, cursor_text: str) -> "Question":
        """Read the parameters of a request. Raises ApiError."""
        asked = json.dumps([filter_text, sort_text])
        cursor = Cursor.read(cursor_text, asked) if cursor_text else None
        sort = Sort.of(sort_text or DEFAULT_SORT)
        return cls(compile_filter(filter_text), sort, asked, cursor)

    def page(self, snapshot: int, limit: int) -> tuple[str, tuple[Any, ...]]:
        """Return the query for (uid, value) of a page and of one row more."""
        condition = self.condition.and_("e.uid < ?", snapshot)
        if self.cursor is not None:
            sql, values = self.sort.after(self.cursor.value, self.cursor.uid)
            condition = condition.and_(sql, *values)
        details = condition.details or self.sort.field.details
        tables = "episodes e LEFT JOIN details d USING (uid)" if details else "episodes e"
        sql = (
            f"SELECT e.uid, {self.sort.field.sql} FROM {tables} WHERE {condition.sql} "
            f"ORDER BY {self.sort.order} LIMIT {limit + 1}"
        )
        return sql, condition.parameters


def _mark(asked: str) -> str:
    return hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()


def _small(cursor: Cursor) -> bool:
    """Whether the database has such integers."""
    numbers = (cursor.snapshot, cursor.uid, cursor.value)
    return all(not isinstance(number, int) or abs(number) < _LARGEST for number in numbers)
