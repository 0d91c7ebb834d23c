"""Python tools as people write them: types, results, modules and files beside them, and state."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from envs.config import IsolationConfig, ToolServerConfig
from envs.errors import ConfigError, DataFileError, MissingError
from envs.tools import ToolService
from rollout.chat.template import ChatTemplate
from rollout.episode import Episode
from tests.rollout.own_world import Row, answer, call, play, real_tools, tasks_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

TYPES = '''
import asyncio, datetime, decimal, pathlib, uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Annotated, Literal, NamedTuple, NewType, TypedDict
from models import Size, Box

class Color(Enum):
    RED = "red"
    DARK = 2

class Mood(StrEnum):
    GOOD = auto()

@dataclass
class Point:
    x: int
    y: float = 0.5
    inner: "Point | None" = None

class Address(TypedDict, total=False):
    street: str

class Pair(NamedTuple):
    low: int
    high: int = 9

UserId = NewType("UserId", int)
Tags = list[str]

async def wait(seconds: float, what: Color = Color.RED) -> str:
    """Wait."""
    first, second = await asyncio.gather(asyncio.sleep(seconds, 1), asyncio.sleep(0, 2))
    return f"{what.name} {first + second}"
def paint(color: Color, mood: Mood = Mood.GOOD) -> str:
    return f"{color!r} {mood!r}"
def move(point: Point, points: list[Point] = []) -> str:
    return f"{point!r} {points!r}"
def live(at: Address) -> str: return at["street"]
def stay(at: Address | int) -> str: return repr(at)
def between(pair: Pair) -> str: return repr(pair)
def when(day: datetime.date, at: datetime.datetime | None = None) -> str: return f"{day!r} {at!r}"
def spend(amount: decimal.Decimal, who: uuid.UUID) -> str: return f"{amount!r} {who.version}"
def user(id: UserId, tags: Tags = []) -> str: return f"{id!r} {tags!r}"
def corner(at: tuple[int, str], many: tuple[int, ...] = (), bag: set[str] = frozenset()) -> str:
    return f"{at!r} {many!r} {sorted(bag)!r}"
def sign(of: Literal[-1, 1, 0.5]) -> str: return repr(of)
def free(a: int, **rest: int) -> str: return f"{a!r} {sorted(rest.items())!r}"
def join(first: str, /, by: str = "-", *more: Color, end: str = ".") -> str:
    return by.join([first, *(f"{each!r}" for each in more)]) + end
def only(a: int, b: int = 2, /, **rest: int) -> str: return f"{a!r} {b!r} {rest!r}"
def sums(*numbers: int) -> int: return sum(numbers)
def later(n: int, log: Callable = print):
    for i in range(n): yield i
async def slowly(n: int):
    for i in range(n): yield {"i": i}
def fit(box: Box, by: dict[int, float] = {}) -> str: return f"{box!r} {by!r}"
'''
MODELS = """
from dataclasses import dataclass
from enum import Enum
class Size(Enum):
    BIG = (1, 2)
    SMALL = 1
@dataclass(frozen=True)
class Box:
    size: Size
    names: list[str]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tools() -> AsyncIterator[ToolService]:
    async with real_tools() as service:
        yield service


def results(episode: Episode) -> list[str]:
    return [f"{call.status.value}: {call.result}" for call in episode.calls]


CALLS: list[tuple[str, Row, str]] = [
    ("wait", {"seconds": 0.01, "what": 2}, "DARK 3"),
    ("wait", {"seconds": 0}, "RED 3"),
    ("paint", {"color": "red"}, "<Color.RED: 'red'> <Mood.GOOD: 'good'>"),
    ("move", {"point": {"x": 1.0, "inner": {"x": 2}}}, "Point(x=1, y=0.5, inner=Point(x=2, y=0.5"),
    (
        "move",
        {"point": {"x": 1, "y": 2}, "points": [{"x": 3}]},
        "Point(x=1, y=2.0, inner=None) [",
    ),
    ("live", {"at": {"street": "s"}}, "s"),
    ("stay", {"at": {"street": "s"}}, "{'street': 's'}"),
    ("between", {"pair": {"low": 1}}, "Pair(low=1, high=9)"),
    ("when", {"day": "2026-02-03"}, "datetime.date(2026, 2, 3) None"),
    ("when", {"day": "2026-02-03", "at": "2026-02-03T04:05:06Z"}, "datetime.date(2026, 2, 3) date"),
    (
        "spend",
        {"amount": "1.50", "who": "12345678-1234-4234-8234-123456789abc"},
        "Decimal('1.50') 4",
    ),
    ("user", {"id": 7.0, "tags": ["a"]}, "7 ['a']"),
    ("corner", {"at": [1, "b"], "many": [1, 2], "bag": ["z", "y"]}, "(1, 'b') (1, 2) ['y', 'z']"),
    ("sign", {"of": -1}, "-1"),
    ("free", {"a": 1, "b": 2.0}, "1 [('b', 2)]"),
    ("join", {"first": "a", "more": ["red", 2]}, "a-<Color.RED: 'red'>-<Color.DARK: 2>."),
    ("join", {"more": [], "end": "!", "first": "a", "by": "+"}, "a!"),
    ("only", {"a": 1.0}, "1 2 {}"),
    ("only", {"b": 3, "a": 1, "c": 4.0}, "1 3 {'c': 4}"),
    ("sums", {}, "0"),
    ("sums", {"numbers": [1, 2.0]}, "3"),
    ("later", {"n": 3}, "[0, 1, 2]"),
    ("slowly", {"n": 2}, '[{"i": 0}, {"i": 1}]'),
    (
        "fit",
        {"box": {"size": [1, 2], "names": ["n"]}, "by": {"3": 1}},
        "Box(size=<Size.BIG: (1, 2",
    ),
]
WRONG: list[tuple[str, Row]] = [
    ("paint", {"color": "green"}),
    ("move", {"point": {"y": 1}}),
    ("move", {"point": {"x": 1, "z": 1}}),
    ("corner", {"at": [1]}),
    ("corner", {"at": [1, 2]}),
    ("sign", {"of": 2}),
    ("free", {"a": 1, "b": "x"}),
    ("fit", {"box": {"size": 3, "names": []}}),
    ("user", {"id": "7"}),
]


async def test_arguments_become_what_the_annotations_say(
    tools: ToolService, template: ChatTemplate, tmp_path: Path
) -> None:
    (tmp_path / "tools.py").write_text(TYPES)
    (tmp_path / "models.py").write_text(MODELS)
    [task] = tasks_in(tmp_path, [{"answer": "x", "tools": {"functions": "tools.py"}}])
    turns = [call(name, **arguments) for name, arguments, _ in CALLS]
    episode = await play(tools, template, task, [*turns, answer("x")])
    assert episode.reward == 1.0, [t.policy_error for t in episode.turns]
    for (name, _, expected), found in zip(CALLS, results(episode), strict=True):
        assert found.startswith(f"ok: {expected}"), name
    wrong = [call(name, **arguments) for name, arguments in WRONG]
    refused = await play(tools, template, task, [*wrong, answer("x")])
    errors = [turn.policy_error for turn in refused.turns]
    assert errors == ["wrong_arguments"] * len(WRONG) + [""]


async def test_a_value_that_its_type_does_not_have_is_a_tool_error(
    tools: ToolService, template: ChatTemplate, tmp_path: Path
) -> None:
    (tmp_path / "tools.py").write_text("import datetime\ndef f(day: datetime.date): return day")
    [task] = tasks_in(tmp_path, [{"answer": "x", "tools": {"functions": "tools.py"}}])
    episode = await play(tools, template, task, [call("f", day="soon"), answer("x")])
    [found] = results(episode)
    assert found.startswith("tool_error: ValueError: argument 'day': Invalid isoformat")


async def test_results_are_json_and_the_same_in_every_session(
    tools: ToolService, template: ChatTemplate, tmp_path: Path
) -> None:
    (tmp_path / "tools.py").write_text(
        "import math, itertools\n"
        "class Thing:\n    def __init__(self): self.size, self._secret = 3, 4\n"
        "def thing(): return Thing()\n"
        "def nested(): return {'t': [Thing()], 'f': math.sqrt, 's': {3, 1, 2}, 'n': math.nan}\n"
        "def views(): d = {'a': 1}; return [d.keys(), d.values(), d.items(), range(2)]\n"
        "def odd(): return object()\n"
        "def endless(): return itertools.count()\n"
    )
    [task] = tasks_in(tmp_path, [{"answer": "x", "tools": {"functions": "tools.py"}}])
    names = ("thing", "nested", "views", "odd", "endless")
    turns = [*map(call, names), answer("x")]
    first = await play(tools, template, task, turns)
    second = await play(tools, template, task, turns, seed=8)
    assert results(first) == results(second)
    assert results(first)[:4] == [
        'ok: {"size": 3}',
        'ok: {"t": [{"size": 3}], "f": "<built-in function sqrt>", "s": [1, 2, 3], "n": "NaN"}',
        'ok: [["a"], [1], [["a", 1]], [0, 1]]',
        'ok: "<object object>"',
    ]
    assert "[cut: the tool returned more than this]" in first.messages[-2].content


FILES = '''
import json, os
from pathlib import Path
from helpers import rate
from lib.deep import twice
HERE = Path(__file__).resolve().parent
PRICES = json.loads((HERE / "prices.json").read_text(encoding="utf-8"))
def price(name: str) -> int:
    """Price."""
    return twice(PRICES[name]) + rate()
def look() -> list:
    """Look around."""
    found = [os.path.exists("prices.json"), Path("data/rows.csv").is_file(), os.listdir("data")]
    with open("data/rows.csv", newline="") as file:
        found.append(file.read())
    found.append((HERE / "data" / "rows.csv").open("rb").read(3).decode())
    for mode in ("w", "a", "r+"):
        try:
            open(HERE / "prices.json", mode)
            found.append(mode)
        except OSError:
            pass
    return found
'''


def folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "tools.py").write_text(FILES)
    (tmp_path / "helpers.py").write_text("def rate(): return 1")
    (tmp_path / "lib" / "deep.py").write_text(
        "from .other import TWO\ndef twice(n): return TWO * n"
    )
    (tmp_path / "lib" / "other.py").write_text("TWO = 2")
    (tmp_path / "prices.json").write_text('{"äpfel": 3}')
    (tmp_path / "data" / "rows.csv").write_text("a,b\n1,2\n")
    (tmp_path / "data" / "more.txt").write_text("more")


@pytest.mark.parametrize("profile", ["compute", "files"])
async def test_modules_and_files_beside_a_tool(
    template: ChatTemplate, tmp_path: Path, profile: str
) -> None:
    folder_with_files(tmp_path)
    source: Row = {"functions": "tools.py", "files": ["data"]}
    [task] = tasks_in(tmp_path, [{"answer": "x", "tools": source}])
    assert sorted(task.tool_set.modules) == ["helpers", "lib", "lib.deep", "lib.other", "tools"]
    assert sorted(task.tool_set.files) == ["data/more.txt", "data/rows.csv", "prices.json"]
    isolation = IsolationConfig.model_validate({"required": "landlock", "profile": profile})
    async with real_tools(ToolServerConfig(isolation=isolation)) as tools:
        turns = [call("price", name="äpfel"), call("look"), answer("x")]
        episode = await play(tools, template, task, turns)
    price, look = results(episode)
    assert price == "ok: 7"
    found = json.loads(look.removeprefix("ok: "))
    assert found[:2] == [True, True]
    assert sorted(found[2]) == ["more.txt", "rows.csv"]
    assert found[3:] == ["a,b\n1,2\n", "a,b"]


async def test_what_is_missing_or_outside_is_named(tmp_path: Path) -> None:
    def refused(message: str, error: type[Exception] = DataFileError, **source: object) -> None:
        tools = {"functions": "tools.py", **source}
        with pytest.raises(error, match=message):
            tasks_in(tmp_path, [{"answer": "x", "tools": tools}])

    (tmp_path / "tools.py").write_text("from . import a\ndef f(): ...")
    refused("leave out the dots")
    (tmp_path / "tools.py").write_text("import broken\ndef f(): ...")
    (tmp_path / "broken.py").write_text("def (")
    refused(r"broken\.py: line 1")
    (tmp_path / "broken.py").write_text("")
    refused("found none at", MissingError, files=["nowhere.csv"])
    refused("found none at", MissingError, files=["../secret"])
    refused("which is none of f", include=["g*"])
    refused("leave none", exclude=["f"])


TWO = '''
class Wallet:
    def __init__(self, coins: int = 0, *, owner: str): self.coins, self.owner = coins, owner
    def pay(self, n: int) -> int:
        """Pay."""
        self.coins -= n
        return self.coins
    def hidden_one(self) -> int: return 0
'''


async def test_one_task_has_several_sources_and_its_own_start(
    tools: ToolService, template: ChatTemplate, tmp_path: Path
) -> None:
    (tmp_path / "wallet.py").write_text(TWO)
    (tmp_path / "shop.py").write_text(
        "SOLD = []\ndef buy(what: str) -> str:\n    SOLD.append(what)\n    return what\n"
    )
    api = {
        "openapi": "3.0.3",
        "info": {"title": "t", "version": "1"},
        "paths": {
            f"/{name}": {"get": {"operationId": name, "responses": {"200": {"description": "ok"}}}}
            for name in ("ping", "pong")
        },
    }
    (tmp_path / "api.json").write_text(json.dumps(api))
    (tmp_path / "reward.py").write_text(
        "def score(state):\n"
        "    wallet, shop = state['Wallet'], state['shop']\n"
        "    return wallet == {'coins': 3, 'owner': 'ada'} and shop == {'SOLD': ['x']}"
    )
    wallet: Row = {
        "python": "wallet.py",
        "arguments": {"coins": 5, "owner": "ada"},
        "exclude": ["hidden_*"],
    }
    sources = [wallet, {"functions": "shop.py"}, {"openapi": "api.json", "include": ["ping"]}]
    rich = {**wallet, "arguments": {"coins": 9, "owner": "bob"}}
    row: Row = {"tools": sources, "scorers": [{"function": "reward.py"}]}
    task, other = tasks_in(tmp_path, [row, {"tools": rich, "answer": "x"}])
    assert [tool.name for tool in task.tool_set.tools] == ["pay", "buy", "ping"]
    turns = [call("pay", n=2), call("buy", what="x"), call("ping"), answer("x")]
    episode = await play(tools, template, task, turns)
    assert episode.reward == 1.0, episode.error
    assert results(await play(tools, template, other, [call("pay", n=2), answer("x")])) == ["ok: 7"]
    with pytest.raises(DataFileError, match="found none for owner"):
        tasks_in(tmp_path, [{"tools": {"python": "wallet.py"}, "answer": "x"}])
    wrong = {**wallet, "arguments": {"owner": "a", "gold": 1}}
    with pytest.raises(DataFileError, match="found gold"):
        tasks_in(tmp_path, [{"tools": wrong, "answer": "x"}])
    with pytest.raises(DataFileError, match="found pay more than once"):
        tasks_in(tmp_path, [{"tools": [wallet, wallet], "answer": "x"}])


async def test_a_source_named_like_a_standard_module_stays_itself(
    tools: ToolService, template: ChatTemplate, tmp_path: Path
) -> None:
    (tmp_path / "calendar.py").write_text(
        "from enum import Enum\nWHERE = __file__\nclass A(Enum):\n    X = 1\n"
        "def f(a: A) -> str: return a.name"
    )
    [task] = tasks_in(tmp_path, [{"answer": "x", "tools": {"functions": "calendar.py"}}])
    assert results(await play(tools, template, task, [call("f", a=1), answer("x")])) == ["ok: X"]


async def test_inherited_methods_of_generic_and_foreign_bases(
    tools: ToolService, template: ChatTemplate, tmp_path: Path
) -> None:
    (tmp_path / "store.py").write_text(
        "from typing import Generic, TypeVar\nT = TypeVar('T')\n"
        "class Store(Generic[T]):\n"
        "    def __init__(self): self.rows = {}\n"
        "    def put(self, key: str, value: T) -> T:\n"
        "        self.rows[key] = value\n        return value\n"
    )
    (tmp_path / "notes.py").write_text(
        "import store\nclass Notes(store.Store[int]):\n"
        "    def count(self) -> int: return len(self.rows)\n"
    )
    [task] = tasks_in(tmp_path, [{"answer": "x", "tools": {"python": "notes.py"}}])
    [_, put] = task.tool_set.tools
    assert put.parameters["properties"] == {"key": {"type": "string"}, "value": {"type": "integer"}}
    turns = [call("put", key="a", value=1), call("count"), answer("x")]
    assert results(await play(tools, template, task, turns)) == ["ok: 1", "ok: 1"]


async def test_packages_that_the_user_names(template: ChatTemplate, tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(
        "import yaml\nfrom pydantic import BaseModel, Field\n"
        "class Order(BaseModel):\n    what: str\n    count: int = Field(default=1)\n"
        "def buy(order: Order) -> Order:\n"
        "    return order.model_copy(update={'what': yaml.safe_load(order.what)['a']})\n"
    )
    [task] = tasks_in(tmp_path, [{"answer": "x", "tools": {"functions": "tools.py"}}])
    turns = [call("buy", order={"what": "a: milk"}), answer("x")]
    isolation = IsolationConfig(required="seccomp", packages=("yaml", "pydantic"))
    async with real_tools(ToolServerConfig(isolation=isolation)) as tools:
        episode = await play(tools, template, task, turns)
    assert results(episode) == ['ok: {"what": "milk", "count": 1}']
    without = IsolationConfig(required="seccomp")
    async with real_tools(ToolServerConfig(isolation=without)) as tools:
        episode = await play(tools, template, task, turns)
    assert "No module named 'yaml'" in results(episode)[0]
    unknown = IsolationConfig(required="seccomp", packages=("no_such_package",))
    with pytest.raises(ConfigError, match=r"tools\.isolation\.packages, found 'no_such_package'"):
        async with real_tools(ToolServerConfig(isolation=unknown)):
            pass
