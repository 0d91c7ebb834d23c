"""Tool sets from Python source: what the policy is told, and what cannot be a tool."""

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
        ("def f(*names): ...", r"f, line 1.*`\*names`"),
        ("def f(a, /): ...", "positional-only a"),
        ("def f(a: ndarray): ...", "argument `a`.*found `ndarray`"),
        ("def f(a: dict[float, str]): ...", r"found `dict\[float, str\]`"),
        ("class A: ...\ndef f(a: A): ...", "found `A`"),
        ("def f(:", "line 1.*Python source"),
        ("x = 1", "at least one public function"),
        ("def f(a: T): ...\nT = 'T'", "argument `a`"),
    ],
)
def test_what_cannot_be_a_tool_is_named(source: str, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        tool_set_of_functions(source)


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
