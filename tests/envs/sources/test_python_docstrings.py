"""Docstrings in every style: each argument gets its text, and nothing is lost."""

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.sources.python import tool_set_of_functions
from envs.sources.python_docstrings import parse_docstring
from tests.random_examples import examples

GOOGLE = """Move money.

    Amounts are in cents. Above 10000
    they must be approved.

    Args:
        source (str): Account that pays.
        target (Union[str, tuple(str, str)]): Account that is paid: see `list`.
        cents (int, optional): How much,
            at least 1.

    Returns:
        str: The id.

    Raises:
        ValueError: Where it is closed.

    Note:
        - first
        - second

    Example:
        >>> transfer("a", "b", 1)
        'T-1'
    """
NUMPY = """
    Move money.

    Parameters
    ----------
    source, target : str
        Accounts.
    cents : int, default=1
        How much.

    Returns
    -------
    str
        The id.

    Notes
    -----
    Never fails.
    """
SPHINX = """Move money.

    :param source: who pays
    :param str target: who is paid,
        by name
    :type target: str
    :param cents: how much
    :returns: the id
    :raises ValueError: where it is closed
    """
EPYDOC = """Move money.

    @param source: who pays
    @param target: who is paid
    @param cents: how much
    @return: the id
    """
UNINDENTED = """Move money.
    Args:
    source: Who pays.
    target: Who is paid.
    cents: How much.
    """
PLAIN = """Move money from source to target.

    No more is said: there are
    no sections.

    1. one
    2. two
    """


def told(docstring: str) -> tuple[str, dict[str, str]]:
    source = f'def transfer(source, target, cents=1):\n    """{docstring}"""\n'
    (tool,) = tool_set_of_functions(source).tools
    properties = tool.parameters["properties"]
    assert isinstance(properties, dict)
    texts = {
        name: str(each["description"])
        for name, each in properties.items()
        if isinstance(each, dict) and "description" in each
    }
    return tool.description, texts


@pytest.mark.parametrize(
    ("docstring", "summary", "arguments"),
    [
        (
            GOOGLE,
            "Move money.\n\nAmounts are in cents. Above 10000 they must be approved.\n\n"
            "Returns: str: The id.\n\nRaises ValueError: Where it is closed.\n\n"
            'Note: - first\n- second\n\nExample:\n>>> transfer("a", "b", 1)\n\'T-1\'',
            {
                "source": "Account that pays.",
                "target": "Account that is paid: see `list`.",
                "cents": "How much, at least 1.",
            },
        ),
        (
            NUMPY,
            "Move money.\n\nReturns: str: The id.\n\nNotes: Never fails.",
            {"source": "Accounts.", "target": "Accounts.", "cents": "How much."},
        ),
        (
            SPHINX,
            "Move money.\n\nReturns: the id\n\nRaises ValueError: where it is closed",
            {"source": "who pays", "target": "who is paid, by name", "cents": "how much"},
        ),
        (
            EPYDOC,
            "Move money.\n\nReturns: the id",
            {"source": "who pays", "target": "who is paid", "cents": "how much"},
        ),
        (
            UNINDENTED,
            "Move money.",
            {"source": "Who pays.", "target": "Who is paid.", "cents": "How much."},
        ),
        (
            PLAIN,
            "Move money from source to target.\n\nNo more is said: there are no sections.\n\n"
            "1. one\n2. two",
            {},
        ),
        ("", "", {}),
    ],
    ids=["google", "numpy", "sphinx", "epydoc", "unindented", "plain", "none"],
)
def test_a_docstring_is_told_whole(docstring: str, summary: str, arguments: dict[str, str]) -> None:
    assert told(docstring) == (summary, arguments)


def test_what_describes_no_argument_belongs_to_the_function() -> None:
    summary, arguments = told(
        "Move.\n\n    Args:\n        source: Pays.\n        fee: Unknown.\n    "
    )
    assert (summary, arguments) == ("Move.\n\nfee: Unknown.", {"source": "Pays."})


WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=4, max_size=8).filter(
    lambda word: word not in ("args", "none", "note", "notes", "param", "raises", "example")
)
SENTENCE = st.lists(WORD, min_size=1, max_size=4).map(" ".join)


def written(style: str, about: list[str], texts: dict[str, str]) -> str:
    match style:
        case "google":
            lines = ["", "Args:", *(f"    {name}: {text}" for name, text in texts.items())]
        case "numpy":
            pairs = [[f"{name} : str", f"    {text}"] for name, text in texts.items()]
            lines = ["", "Parameters", "----------", *(line for pair in pairs for line in pair)]
        case "sphinx":
            lines = ["", *(f":param {name}: {text}" for name, text in texts.items())]
        case _:
            lines = ["", *(f"@param {name}: {text}" for name, text in texts.items())]
    return "\n".join(["\n\n".join(about), *lines])


@settings(max_examples=examples(300), deadline=None)
@given(
    style=st.sampled_from(["google", "numpy", "sphinx", "epydoc"]),
    about=st.lists(SENTENCE, min_size=1, max_size=3),
    texts=st.dictionaries(st.sampled_from(["a", "b", "c"]), SENTENCE, min_size=1),
)
def test_every_style_gives_every_text(style: str, about: list[str], texts: dict[str, str]) -> None:
    found = parse_docstring(written(style, about, texts), ["a", "b", "c"])
    assert found.arguments == texts
    assert found.summary == "\n\n".join(about)


PIECES = st.sampled_from(
    [
        *("Args:", "Parameters", "----------", ":param x:", ":param", "@param y: z", "Returns:"),
        *(
            "    x: y",
            "x : int",
            "    ",
            "",
            "Raises:",
            ":returns:",
            ">>> f()",
            "Example:",
            ":type",
        ),
        *(
            "Args: ",
            "  - a",
            "x (int: y",
            ":raises",
            ".. deprecated:: 1",
            "Yields:",
            "@",
            ":",
            "::",
        ),
    ]
)


@settings(max_examples=examples(700), deadline=None)
@given(lines=st.lists(PIECES | st.text(max_size=12), max_size=9))
def test_no_docstring_is_refused(lines: list[str]) -> None:
    text = inspect.cleandoc("\n".join(lines))
    found = parse_docstring(text, ["x", "y"])
    assert found.arguments.keys() <= {"x", "y"}


def test_fields_and_annotations_say_what_they_say() -> None:
    source = """
from typing import Annotated
from pydantic import Field

def book(
    seats: Annotated[int, Field(description="How many seats.", ge=1, le=9, examples=[2])],
    name: Annotated[str, "Who comes.", Field(min_length=2, pattern="^[A-Z]")],
    days: Annotated[list[int], Field(max_length=3)],
    note: str = Field(description="Anything else."),
):
    \"\"\"Book a table.\"\"\"
"""
    (tool,) = tool_set_of_functions(source).tools
    assert tool.parameters["required"] == ["seats", "name", "days", "note"]
    assert tool.parameters["properties"] == {
        "seats": {
            "type": "integer",
            "description": "How many seats.",
            "minimum": 1,
            "maximum": 9,
            "examples": [2],
        },
        "name": {
            "type": "string",
            "description": "Who comes.",
            "minLength": 2,
            "pattern": "^[A-Z]",
        },
        "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "note": {"type": "string", "description": "Anything else."},
    }
