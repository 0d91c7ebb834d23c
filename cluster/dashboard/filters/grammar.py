"""The grammar of filters: from text to a tree.

filter     = any
any        = all { "or" all }
all        = one { "and" one }
one        = "not" one | "(" any ")" | test
test       = subject [ operator value | "in" "(" value { "," value } ")" ]
subject    = name [ "(" text ")" ] [ "." name ]
operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~" | "!~"
value      = number | text | name | "null"
"""

from dataclasses import dataclass

from cluster.dashboard.filters.lexer import Token, filter_error, tokens_of
from cluster.dashboard.problems import ApiError

OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "~", "!~", "in")
_DEEPEST = 40
"""Nested parentheses and `not`."""
_MOST_TESTS = 100


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tested: `reward`, `tool("search").errors`, `part("answer")`."""

    name: Token
    argument: Token | None = None
    member: Token | None = None

    @property
    def text(self) -> str:
        """The subject without its argument."""
        call = "()" if self.argument else ""
        return self.name.text + call + (f".{self.member.text}" if self.member else "")


@dataclass(frozen=True, slots=True)
class Test:
    """A comparison; without an operator the subject is a flag."""

    subject: Subject
    operator: str
    values: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Not:
    inner: "Node"


@dataclass(frozen=True, slots=True)
class Joined:
    """Tests joined by `and` or `or`."""

    word: str
    parts: tuple["Node", ...]


Node = Test | Not | Joined


def parse(text: str) -> Node | None:
    """Return the tree of a filter; None for an empty one. Raises ApiError."""
    parser = _Parser(tokens_of(text))
    if parser.now.kind == "end":
        return None
    node = parser.any(0)
    if parser.now.kind != "end":
        raise _unexpected(parser.now, "`and`, `or` or the end")
    return node


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._index = 0
        self._tests = 0

    @property
    def now(self) -> Token:
        return self._tokens[self._index]

    def any(self, depth: int) -> Node:
        return self._joined("or", depth)

    def _joined(self, word: str, depth: int) -> Node:
        parts = [self._part(word, depth)]
        while self._word(word):
            parts.append(self._part(word, depth))
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _part(self, word: str, depth: int) -> Node:
        return self._joined("and", depth) if word == "or" else self._one(depth)

    def _one(self, depth: int) -> Node:
        if depth > _DEEPEST:
            detail = f"expected at most {_DEEPEST} nested parentheses"
            raise filter_error(detail, "simplify the filter", self.now.place)
        if self._word("not"):
            return Not(self._one(depth + 1))
        if self._operator("("):
            inner = self.any(depth + 1)
            self._need(")", "a closing parenthesis")
            return inner
        return self._test()

    def _test(self) -> Test:
        self._tests += 1
        if self._tests > _MOST_TESTS:
            detail = f"expected at most {_MOST_TESTS} comparisons"
            raise filter_error(detail, "use `in (...)`", self.now.place)
        subject = self._subject()
        if self._word("in"):
            return Test(subject, "in", self._list())
        if self.now.kind == "operator" and self.now.text in (*OPERATORS, "=="):
            operator = self._take().text.replace("==", "=")
            return Test(subject, operator, (self._value(),))
        return Test(subject, "", ())

    def _subject(self) -> Subject:
        if self.now.kind != "name":
            raise _unexpected(self.now, "a field, such as reward")
        name, argument, member = self._take(), None, None
        if self._operator("("):
            if self.now.kind not in ("text", "name"):
                raise _unexpected(self.now, f'a text in quotes, such as {name.text}("search")')
            argument = self._take()
            self._need(")", "a closing parenthesis")
        if self._operator("."):
            if self.now.kind != "name":
                raise _unexpected(self.now, "a figure, such as .calls")
            member = self._take()
        return Subject(name, argument, member)

    def _list(self) -> tuple[Token, ...]:
        self._need("(", "`(` after `in`")
        values = [self._value()]
        while self._operator(","):
            values.append(self._value())
        self._need(")", "a closing parenthesis")
        return tuple(values)

    def _value(self) -> Token:
        if self.now.kind not in ("number", "text", "name"):
            raise _unexpected(self.now, "a number or a text in quotes")
        return self._take()

    def _take(self) -> Token:
        self._index += 1
        return self._tokens[self._index - 1]

    def _word(self, word: str) -> bool:
        return self._skip(self.now.kind == "name" and self.now.text.lower() == word)

    def _operator(self, text: str) -> bool:
        return self._skip(self.now.kind == "operator" and self.now.text == text)

    def _skip(self, fits: bool) -> bool:
        self._index += fits
        return fits

    def _need(self, text: str, what: str) -> None:
        if not self._operator(text):
            raise _unexpected(self.now, what)


def _unexpected(token: Token, wanted: str) -> ApiError:
    found = "the end" if token.kind == "end" else repr(token.text[:40])
    return filter_error(f"expected {wanted}, found {found}", f"write {wanted} here", token.place)
