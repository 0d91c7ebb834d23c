"""Filters become SQL with bound parameters: no text of a filter is ever part of the SQL."""

import difflib
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dashboard.filters.fields import (
    FIELDS,
    FLAGS,
    FUNCTIONS,
    PHASES,
    SYNONYMS,
    TOOL_FIGURES,
    Field,
    Type,
)
from cluster.dashboard.filters.grammar import Joined, Node, Not, Subject, Test, parse
from cluster.dashboard.filters.lexer import Token, filter_error
from cluster.dashboard.problems import ApiError, Place

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SHORT = {"<", "<=", ">", ">="}
_LARGEST_WHOLE = 2.0**62
"""Larger numbers are compared as floats: the database has no such integers."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A condition over `e` (episodes) and, if `details`, `d` (details), and its parameters."""

    sql: str = "TRUE"
    parameters: tuple[Any, ...] = ()
    details: bool = False

    def and_(self, sql: str, *parameters: Any) -> "Compiled":
        """Return this condition with a further one."""
        return Compiled(f"({self.sql}) AND ({sql})", (*self.parameters, *parameters), self.details)

    @property
    def tables(self) -> str:
        """The tables of a query with this condition."""
        return "episodes e JOIN details d USING (uid)" if self.details else "episodes e"


def compile_filter(text: str) -> Compiled:
    """Return the condition of a filter. Raises ApiError that says where it is wrong."""
    node = parse(text)
    return Compiled() if node is None else _node(node)


def field_named(name: str, place: Place | None = None) -> Field:
    """Return a plain field. Raises ApiError with the names that were probably meant."""
    found = FIELDS.get(SYNONYMS.get(name, name))
    if found is not None:
        return found
    raise _unknown("field", name, (*FIELDS, *FUNCTIONS), place or Place(0, len(name)))


def _node(node: Node) -> Compiled:
    match node:
        case Test():
            return _test(node)
        case Not():
            inner = _node(node.inner)
            # A test of a missing value is neither true nor false in SQL; here it is not true.
            return Compiled(f"NOT coalesce(({inner.sql}), FALSE)", inner.parameters, inner.details)
        case Joined():
            parts = [_node(part) for part in node.parts]
            return Compiled(
                f" {node.word.upper()} ".join(f"({part.sql})" for part in parts),
                tuple(value for part in parts for value in part.parameters),
                any(part.details for part in parts),
            )


def _test(test: Test) -> Compiled:
    subject = test.subject
    if subject.argument is None and subject.member is None:
        return _plain(test, field_named(subject.name.text, subject.name.place))
    function = subject.name.text
    if function not in FUNCTIONS:
        raise _unknown("function", function, tuple(FUNCTIONS), subject.name.place)
    if subject.argument is None:
        example = FUNCTIONS[function][1]
        detail = f"{function} needs a name in parentheses"
        raise filter_error(detail, f"write it as in {example}", subject.name.place)
    by_name = {"tool": _tool, "phase": _phase, "part": _part, "tag": _tag, "flag": _flag}
    return by_name[function](test, subject.argument)


def _plain(test: Test, field: Field) -> Compiled:
    found = _comparison(test, field.sql, field.type, single=field.single, values=field.values)
    return Compiled(found.sql, found.parameters, field.details)


def _tool(test: Test, name: Token) -> Compiled:
    figure = _member(test.subject, tuple(TOOL_FIGURES))
    aggregate = TOOL_FIGURES[figure]
    inner = _comparison(test, aggregate, "number")
    chosen = "SELECT uid FROM calls WHERE tool = ? GROUP BY uid HAVING"
    if _holds_for_nothing(test):  # also episodes without such a call
        sql = f"e.uid NOT IN ({chosen} NOT coalesce(({inner.sql}), FALSE))"
    else:
        sql = f"e.uid IN ({chosen} {inner.sql})"
    return Compiled(sql, (name.text, *inner.parameters), True)


def _phase(test: Test, name: Token) -> Compiled:
    if name.text not in PHASES:
        raise _unknown("phase", name.text, tuple(PHASES), name.place)
    figure = _member(test.subject, PHASES[name.text])
    return Compiled(*_pair(_comparison(test, f"d.{name.text}_{figure}", "number")), True)


def _part(test: Test, name: Token) -> Compiled:
    _no_member(test.subject)
    inner = _comparison(test, "value", "number", single=True)
    sql = f"e.uid IN (SELECT uid FROM parts WHERE name = ? AND {inner.sql})"
    return Compiled(sql, (name.text, *inner.parameters), True)


def _tag(test: Test, name: Token) -> Compiled:
    _no_member(test.subject)
    inner = _comparison(test, "value", "text")
    sql = f"e.uid IN (SELECT uid FROM tags WHERE name = ? AND {inner.sql})"
    return Compiled(sql, (name.text, *inner.parameters), True)


def _flag(test: Test, name: Token) -> Compiled:
    _no_member(test.subject)
    if name.text not in FLAGS:
        raise _unknown("flag", name.text, tuple(FLAGS), name.place)
    return _plain(test, FIELDS[name.text])


def _comparison(
    test: Test, sql: str, type_: Type, *, single: bool = False, values: Sequence[str] = ()
) -> Compiled:
    """Return the comparison of a value of `type_` that `sql` computes."""
    if type_ == "flag":
        return _flag_comparison(test, sql)
    if not test.operator:
        fix = f"add a comparison, such as {test.subject.text}>0 or ='...'"
        raise filter_error(f"{test.subject.text} is no flag", fix, test.subject.name.place)
    if any(_is_null(value) for value in test.values):
        return _null_comparison(test, sql)
    if type_ == "number":
        bound = tuple(_number(value) for value in test.values)
        mark = "CAST(? AS REAL)" if single else "?"
        if test.operator in ("~", "!~"):
            fix = "use =, !=, <, <=, > or >="
            raise filter_error("a number has no text to look in", fix, test.values[0].place)
        return _with_operator(test.operator, sql, mark, bound)
    if test.operator in _SHORT:
        fix = "use =, !=, ~, !~ or in"
        raise filter_error("texts have no order here", fix, test.values[0].place)
    for value in test.values:
        if values and test.operator in ("=", "!=", "in") and value.text not in values:
            raise _unknown(f"value of {test.subject.text}", value.text, values, value.place)
    if test.operator in ("~", "!~"):
        return _pattern(test, sql)
    return _with_operator(test.operator, sql, "?", tuple(value.text for value in test.values))


def _with_operator(word: str, sql: str, mark: str, bound: tuple[Any, ...]) -> Compiled:
    if word == "in":
        return Compiled(f"{sql} IN ({', '.join([mark] * len(bound))})", bound)
    if word == "!=":
        return Compiled(f"{sql} IS DISTINCT FROM {mark}", bound)
    return Compiled(f"{sql} {word} {mark}", bound)


def _pattern(test: Test, sql: str) -> Compiled:
    pattern = check_pattern(test.values[0].text, test.values[0].place)
    found = f"coalesce(regexp_matches({sql}, ?, 'i'), FALSE)"
    return Compiled(f"NOT {found}" if test.operator == "!~" else found, (pattern,))


def check_pattern(pattern: str, place: Place | None = None) -> str:
    """Return `pattern` if RE2 can read it, which takes linear time. Raises ApiError."""
    try:
        pc.match_substring_regex(pa.array([""]), pattern)  # type: ignore[attr-defined]
    except (pa.ArrowInvalid, UnicodeError) as error:
        detail = f"the regular expression cannot be read: {error}"
        fix = "escape special characters with a backslash; look-around is not offered"
        raise ApiError(400, "bad-pattern", detail, fix, place) from error
    return pattern


def _null_comparison(test: Test, sql: str) -> Compiled:
    words = {"=": "IS NULL", "!=": "IS NOT NULL"}
    if test.operator not in words:
        fix = "write =null or !=null"
        raise filter_error("null has no order", fix, test.values[0].place)
    return Compiled(f"{sql} {words[test.operator]}")


def _flag_comparison(test: Test, sql: str) -> Compiled:
    if not test.operator:
        return Compiled(f"coalesce({sql}, FALSE)")
    value = test.values[0].text.lower()
    if test.operator not in ("=", "!=") or value not in ("true", "false"):
        fix = f"write {test.subject.text}, or not {test.subject.text}"
        raise filter_error("a flag is true or false", fix, test.values[0].place)
    wanted = (value == "true") == (test.operator == "=")
    return Compiled(f"coalesce({sql}, FALSE)" if wanted else f"NOT coalesce({sql}, FALSE)")


def _holds_for_nothing(test: Test) -> bool:
    """Whether an episode without any call of the tool passes: its figures are all 0."""
    if test.operator == "in":
        return any(_number(value) == 0 for value in test.values)
    if not test.operator or _is_null(test.values[0]) or test.operator not in _COMPARE:
        return False
    return _COMPARE[test.operator](0.0, _number(test.values[0]))


def _number(value: Token) -> float:
    if value.kind == "number":
        number = float(value.text)
        whole = value.text.lstrip("+-").isdecimal() and abs(number) < _LARGEST_WHOLE
        return int(value.text) if whole else number
    detail = f"expected a number, found {value.text[:40]!r}"
    raise filter_error(detail, "write a number without quotes", value.place)


def _is_null(value: Token) -> bool:
    return value.kind == "name" and value.text.lower() == "null"


def _member(subject: Subject, names: tuple[str, ...]) -> str:
    if subject.member is None:
        fix = f"add one of .{', .'.join(names)}"
        raise filter_error(f"{subject.text} needs a figure", fix, subject.name.place)
    if subject.member.text not in names:
        raise _unknown("figure", subject.member.text, names, subject.member.place)
    return subject.member.text


def _no_member(subject: Subject) -> None:
    if subject.member is not None:
        detail = f"{subject.name.text}(...) has no figures"
        raise filter_error(detail, "leave out what follows the dot", subject.member.place)


def _pair(found: Compiled) -> tuple[str, tuple[Any, ...]]:
    return found.sql, found.parameters


def _unknown(what: str, name: str, known: Iterable[str], place: Place) -> ApiError:
    names = list(known)
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    fix = f"did you mean {' or '.join(close)}?" if close else f"use one of {listed}"
    detail = f"there is no {what} {name[:40]!r}"
    return filter_error(detail, fix, Place(place.position, place.length, tuple(close)))
