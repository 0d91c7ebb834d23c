"""Tool sets from Python source: what the policy is told, and what cannot be a tool."""

import sys

import pytest

from envs.errors import DataFileError
from envs.sources.python import tool_set_of_class, tool_set_of_functions

BANK = '''
from typing import Literal, Optional

Money = int

class Ledger:
    def history(self) -> list[str]:
        """List what happened."""
        return []

class Bank(Ledger):
    def __init__(self, opened: str = "today"):
        self.money = {}

    def deposit(self, account: str, amount: Money, *, kind: Literal["cash", "card"] = "cash"):
        """Put money
        into an account.

        Never fails.

        Args:
            account: Whose account,
                by name.
            amount (int): How much.

        Returns:
            int: the balance
        """

    @staticmethod
    def convert(amounts: "list[dict[str, float]]", note: Optional[str] = None) -> str:
        """Convert amounts.

        :param amounts: The amounts
        :param str note: Kept
            with them.
        """

    @property
    def total(self) -> int:
        return 0

    def _audit(self) -> None: ...
'''


def test_a_class_gives_its_public_methods() -> None:
    tool_set = tool_set_of_class(BANK, "Bank")

    assert tool_set.functions == ("Bank.deposit", "Bank.convert", "Bank.history")
    assert set(tool_set.sources) == {BANK}
    deposit, convert, history = tool_set.tools
    assert deposit.description == (
        "Put money into an account.\n\nNever fails.\n\nReturns: int: the balance"
    )
    assert deposit.parameters == {
        "type": "object",
        "properties": {
            "account": {"type": "string", "description": "Whose account, by name."},
            "amount": {"type": "integer", "description": "How much."},
            "kind": {"type": "string", "enum": ["cash", "card"], "default": "cash"},
        },
        "required": ["account", "amount"],
        "additionalProperties": False,
    }
    assert convert.parameters["properties"] == {
        "amounts": {
            "type": "array",
            "items": {"type": "object", "additionalProperties": {"type": "number"}},
            "description": "The amounts",
        },
        "note": {"type": ["string", "null"], "description": "Kept with them."},
    }
    assert history.parameters["required"] == []


def test_the_only_class_with_tools_needs_no_name() -> None:
    source = "class _Row:\n    def a(self): ...\nclass Shop:\n    def buy(self, what: str): ..."
    assert tool_set_of_class(source).functions == ("Shop.buy",)


def test_functions_of_a_module_share_one_source() -> None:
    source = (
        "def add(a: int, b: int = 2) -> int:\n    '''Add.\n\n    Parameters\n    ----------\n"
        "    a : int\n        The first.\n    '''\ndef _private(): ...\ndef any_value(x): ..."
    )
    tool_set = tool_set_of_functions(source)

    assert tool_set.functions == ("add", "any_value")
    assert tool_set.sources == (source, source)
    assert tool_set.tools[0].parameters["properties"] == {
        "a": {"type": "integer", "description": "The first."},
        "b": {"type": "integer", "default": 2},
    }
    assert tool_set.tools[1].parameters["properties"] == {"x": {}}


def test_the_source_is_not_run() -> None:
    assert tool_set_of_functions("1 / 0\ndef f(a: int = 1 / 0): ...").tools[0].name == "f"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(*names: ndarray): ...", "argument `names`.*found `ndarray`"),
        ("def f(a: ndarray): ...", "argument `a`.*found `ndarray`"),
        ("def f(a: dict[float, str]): ...", r"found `dict\[float, str\]`"),
        ("class A: ...\ndef f(a: A): ...", "found `A`"),
        ("def f(:", "line 1.*source of Python 3"),
        ("x = 1", "at least one public function"),
        ("def f(a: T): ...\nT = 'T'", "argument `a`"),
    ],
)
def test_what_cannot_be_a_tool_is_named(source: str, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        tool_set_of_functions(source)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python takes the syntax")
@pytest.mark.parametrize(
    "source",
    [
        "def first[T](items: list[T]) -> T: ...",
        "class Store[T]:\n    def put(self, item: T): ...",
        "x = 1\nasync  def f [T: int](a: T): ...",
        "type Names = list[str]\ndef f(names: Names): ...",
    ],
)
def test_the_syntax_of_a_later_python_is_named(source: str) -> None:
    with pytest.raises(DataFileError, match=r"line \d.*of Python 3.11, found type param.*TypeVar"):
        tool_set_of_functions(source)


def test_arguments_without_a_name_have_one_in_the_schema() -> None:
    source = """
def add(first: int, /, second: int = 2, *more: float, mark: str = ""):
    '''Add.

    Args:
        first: Where to begin.
        *more: Further numbers.
    '''
def any_of(*things): ...
class Bag:
    def __init__(self, size, /, *things: str): ...
    def put(self, /, *things: str, **by: int): ...
    def every(*args): ...
"""
    add, any_of = tool_set_of_functions(source).tools
    assert add.parameters == {
        "type": "object",
        "properties": {
            "first": {"type": "integer", "description": "Where to begin."},
            "second": {"type": "integer", "default": 2},
            "mark": {"type": "string", "default": ""},
            "more": {
                "type": "array",
                "items": {"type": "number"},
                "description": "Further numbers.",
            },
        },
        "required": ["first"],
        "additionalProperties": False,
    }
    assert any_of.parameters["properties"] == {"things": {"type": "array"}}
    put, every = tool_set_of_class(source, setup={"size": 1, "things": ["a"]}).tools
    assert put.parameters["additionalProperties"] == {"type": "integer"}
    texts = {"type": "array", "items": {"type": "string"}}
    assert put.parameters["properties"] == {"things": texts}
    assert every.parameters["properties"] == {"args": {"type": "array"}}
    with pytest.raises(DataFileError, match="none for size"):
        tool_set_of_class(source, setup={"things": []})


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("class A:\n    def f(self): ...", "B", "expected a class B"),
        ("class A:\n    def __init__(self, x): ...\n    def f(self): ...", "A", "none for x"),
        ("class A:\n    def _f(self): ...", "A", "at least one public method"),
        ("class A:\n    def f(self): ...\nclass B:\n    def f(self): ...", None, "found A, B"),
        ("class A:\n    def f(): ...", "A", "`self`"),
    ],
)
def test_what_cannot_be_a_tool_class_is_named(source: str, name: str | None, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        tool_set_of_class(source, name)
