"""Arguments are made what annotations want, also where Python cannot tell what something is."""

from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from envs.sandbox.inside.fitting import invoked


class Sized(Protocol):
    def __len__(self) -> int: ...


@dataclass
class Point:
    x: int


def anything(a: Any | None) -> object:
    return a


def an_object(a: int | object) -> object:
    return a


def a_protocol(a: Sized | None) -> object:
    return a


def several(a: list[Any | int] | None) -> object:
    return a


@pytest.mark.parametrize("function", [anything, an_object, a_protocol, several])
@pytest.mark.parametrize("value", [None, "x", [1, "x", None], {"k": 1}])
def test_a_value_of_any_kind_stays_as_it_is(function: Any, value: object) -> None:
    assert invoked(function, {"a": value}) == value


def of_points(a: set[Point]) -> int:
    return len(a)


def test_a_set_of_what_no_set_holds_says_so() -> None:
    assert invoked(of_points, {"a": []}) == 0
    with pytest.raises(ValueError, match=r"argument 'a': a set cannot hold this: .*Point"):
        invoked(of_points, {"a": [{"x": 1}]})
