"""The user's own tasks: how they are read, scored and split, and what is said of a wrong line."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from envs.argument_check import check_arguments
from envs.config import IsolationConfig, ToolServerConfig
from envs.endpoints import (
    Endpoint,
    HttpEndpoint,
    McpHttpEndpoint,
    McpStdioEndpoint,
    OpenEnvEndpoint,
)
from envs.errors import ConfigError, DataFileError, MissingError
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.scoring.answer_text import NumberScorer, TextScorer
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.environment import FileEnvironment
from envs.tasksets.outside import Outside
from envs.tools import AnswerStatus, JsonObject, ToolSet, ToolSpec
from tests.envs.tasksets.answers_of import score_of

LIBRARY = (Path(__file__).resolve().parents[1] / "documents" / "library.json").read_text()


def no_servers(endpoint: Endpoint) -> ToolSet:
    raise AssertionError(f"asked {endpoint}")


def row(**changes: object) -> JsonObject:
    fields: JsonObject = {
        "id": "a",
        "question": "How much?",
        "answer": "7",
        "tools": {"functions": "tools.py"},
    }
    return json.loads(json.dumps({**fields, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text("def add(a: int, b: int) -> int:\n    '''Add.'''\n")
    (tmp_path / "bank.py").write_text("class Bank:\n    def pay(self, n: int): ...\n")
    (tmp_path / "api.json").write_text(LIBRARY)
    return tmp_path


def read(folder: Path, *rows: JsonObject | str, percent: int = 20) -> FileEnvironment:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (folder / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    config = FileEnvConfig(path=str(folder), heldout_percent=percent)
    return FileEnvironment(config, Outside(list_tools=no_servers))


# Reading


def test_a_line_is_a_task(folder: Path) -> None:
    environment = read(folder, row(split="heldout", tags={"depth": "1"}), "", row(id="b"))
    first, second = environment.all_tasks()
    assert (first.id, first.split, first.question) == ("file-a", "heldout", "How much?")
    assert first.tags == {"depth": "1"}
    assert score_of(first, "7") == 1.0
    assert [tool.name for tool in first.tool_set.tools] == ["add"]
    assert second.tool_set is first.tool_set


def test_tools_come_from_code_and_documents(folder: Path) -> None:
    hosts = {"base_url": "http://api.example/v1", "operations": ["getBook"]}
    environment = read(
        folder,
        row(id="1", tools={"python": "bank.py", "class": "Bank"}),
        row(id="2", tools={"python": "bank.py"}),
        row(id="3", tools={"openapi": "api.json"}),
        row(id="4", tools={"openapi": "api.json", **hosts}),
    )
    bank, same, simulated, real = (task.tool_set for task in environment.all_tasks())
    assert bank.functions == same.functions == ("Bank.pay",)
    assert simulated.sandboxed
    assert isinstance(real.endpoint, HttpEndpoint)
    assert real.endpoint.base_url == "http://api.example/v1"


def test_servers_are_asked_for_their_tools_once(folder: Path) -> None:
    asked: list[Endpoint] = []

    def list_tools(endpoint: Endpoint) -> ToolSet:
        asked.append(endpoint)
        spec = ToolSpec(name="there", description="", parameters={})
        return ToolSet(tools=(spec,), endpoint=endpoint)

    sources: list[JsonObject] = [
        {"mcp": {"command": ["mcp-server-time", "--utc"]}},
        {"mcp": {"url": "http://host/mcp", "token_variable": "T"}},
        {"openenv": {"url": "http://host:1"}},
        {"openenv": {"url": "http://host:1"}},
    ]
    rows = [row(id=str(number), tools=tools) for number, tools in enumerate(sources)]
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    FileEnvironment(FileEnvConfig(path=str(folder / "tasks.jsonl")), Outside(list_tools=list_tools))
    assert asked == [
        McpStdioEndpoint(command=("mcp-server-time", "--utc"), folder=str(folder)),
        McpHttpEndpoint(url="http://host/mcp", token_variable="T"),
        OpenEnvEndpoint(url="http://host:1"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"tasks.jsonl:2, column 2: invalid JSON"),
        ("[]", r"tasks.jsonl:2: Input should be a valid dictionary"),
        (row(id="a"), "tasks.jsonl:2, field `id`: .* found that of line 1"),
        ({"id": "b"}, "field `tools`: expected this field, found none"),
        (row(id="b", points=3), "field `points`: unknown field: remove it or correct its name$"),
        (row(id="b", scorer_s=[]), "field `scorer_s`: unknown .*; did you mean `scorers`[?]$"),
        (row(id="b", answer=True), "field `answer`: .*text or a number"),
        (row(id="b", answer="x", scorer="numeric"), "expected a number in `answer`"),
        (row(id="b", scorer="llm"), "field `scorer`: Input should be 'exact', 'numeric'"),
        (row(id="b", split="test"), "field `split`: Input should be 'train'"),
        (row(id="b", tools={}), "field `tools`: .*exactly one of the keys python, functions"),
        (row(id="b", tools={"python": "x", "mcp": {}}), "field `tools`: .*exactly one"),
        (row(id="b", tools={"python": "bank.py", "klass": "Bank"}), "field `tools.klass`"),
        (row(id="b", tools={"mcp": {}}), "field `tools.mcp`: .*either `command` or `url`"),
        (
            row(
                id="b", tools=[{"openenv": {"url": f"http://h:{n}", "world": True}} for n in (1, 2)]
            ),
            "at most one OpenEnv environment with `world`, found 2",
        ),
        (row(id="b", tools={"functions": "bank.py"}), r"field `tools`: .*bank.py: .*function"),
        (row(id="b", tools={"python": "bank.py", "class": "Shop"}), "expected a class Shop"),
    ],
)
def test_a_wrong_line_is_named_with_what_to_do(
    folder: Path, line: JsonObject | str, message: str
) -> None:
    with pytest.raises(DataFileError, match=message):
        read(folder, row(), line)


def test_files_that_are_not_there_are_named(folder: Path) -> None:
    with pytest.raises(MissingError, match=r"tasks.jsonl:1, field `tools`: .*none.py"):
        read(folder, row(tools={"functions": "none.py"}))
    with pytest.raises(MissingError, match=r"env\.path"):
        FileEnvironment(
            FileEnvConfig(path=str(folder / "none.jsonl")), Outside(list_tools=no_servers)
        )
    with pytest.raises(DataFileError, match="at least one task"):
        read(folder, "")


# Splits


def test_a_split_depends_on_the_id_alone(folder: Path) -> None:
    rows = [row(id=f"task {number}") for number in range(200)]
    environment = read(folder, *rows, percent=30)
    splits = {task.id: task.split for task in environment.all_tasks()}
    assert 40 <= list(splits.values()).count("heldout") <= 80
    alone = read(folder, rows[17], percent=30).all_tasks()[0]
    assert alone.split == splits[alone.id]
    drawn = environment.tasks("train", 3, 20)
    assert [task.id for task in drawn] == [task.id for task in environment.tasks("train", 3, 20)]
    assert [task.id for task in drawn] != [task.id for task in environment.tasks("train", 4, 20)]
    with pytest.raises(ConfigError, match="expected 300 tasks in the train split"):
        environment.tasks("train", 3, 300)


# Scorers


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Dag", True), (" dag.\n", True), ("Dag  Aune", False), ("It is Dag", False), ("", False)],
)
def test_exact(answer: str, right: bool) -> None:
    assert TextScorer("dag").score(answer).reward == float(right)


@pytest.mark.parametrize(
    ("answer", "right"), [("It is Dag.", True), ("dag", True), ("da g", False), ("", False)]
)
def test_contains(answer: str, right: bool) -> None:
    assert TextScorer("Dag", contains=True).score(answer).reward == float(right)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("1234.5", True),
        ("1,234.50", True),
        ("Of 3 coins, 1234.5", True),
        ("1.2345e3", True),
        ("1234.5 of 3", False),
        ("-1234.5", False),
        ("12345", False),
        ("none", False),
        ("1,", False),
    ],
)
def test_numeric(answer: str, right: bool) -> None:
    assert NumberScorer(1234.5, 1e-6).score(answer).reward == float(right)


# The tasks that ship with the project

BALANCE_ADA: tuple[str, JsonObject] = ("balance", {"account": "ada"})
FREE_DAG: list[tuple[str, JsonObject]] = [
    ("thaw", {"account": "dag", "password": "gad"}),
    ("transfer", {"source": "dag", "target": "bo", "coins": 100}),
]


def pay(source: str, target: str, coins: int) -> tuple[str, JsonObject]:
    return "transfer", {"source": source, "target": target, "coins": coins}


SOLUTIONS: dict[str, list[tuple[str, JsonObject]]] = {
    "ada-balance": [BALANCE_ADA],
    "all-coins": [("balance", {"account": name}) for name in ("ada", "bo", "cleo", "dag")],
    "ada-pays-bo": [pay("ada", "bo", 20), BALANCE_ADA],
    "ada-pays-60": [pay("ada", "cleo", 60), BALANCE_ADA],
    "bo-twice": [pay("bo", "cleo", 10), pay("bo", "cleo", 10), ("balance", {"account": "bo"})],
    "dag-pays": [*FREE_DAG, ("balance", {"account": "bo"})],
    "dag-fee": [*FREE_DAG, ("fees", {})],
    "eve-opens": [
        ("open_account", {"account": "eve", "coins": 9}),
        ("open_account", {"account": "eve", "coins": 10}),
    ],
    "who-is-frozen": [("close_account", {"account": "dag"})],
    "cleo-receives": [
        ("deposit", {"account": "cleo", "coins": 5}),
        ("close_account", {"account": "cleo"}),
    ],
    "bo-empties": [pay("bo", "ada", 35), pay("bo", "ada", 34), BALANCE_ADA],
    "poorest": [("balance", {"account": "cleo"})],
}


def concluded(task_id: str, texts: list[str]) -> str:
    """Return the answer that the last texts of a solution lead to."""
    match task_id:
        case "all-coins":
            return str(sum(map(int, texts)))
        case "who-is-frozen":
            return texts[-1].removeprefix("PermissionError: ").removesuffix(" is frozen")
        case "poorest":
            return f"Cleo, with {texts[-1]} coins."
        case _:
            return texts[-1]


@pytest.fixture
async def pool() -> AsyncIterator[SandboxPool]:
    sandbox = SandboxPool(ToolServerConfig(isolation=IsolationConfig(required="seccomp")))
    await sandbox.start()
    yield sandbox
    await sandbox.close()


async def test_the_tasks_that_ship_are_solvable_in_the_sandbox(pool: SandboxPool) -> None:
    environment = FileEnvironment(FileEnvConfig(), Outside(list_tools=no_servers))
    tasks = environment.all_tasks()
    assert {task.id.removeprefix("file-") for task in tasks} == SOLUTIONS.keys()
    assert {task.split for task in tasks} == {"train", "validation", "heldout"}
    for task in tasks:
        task_id = task.id.removeprefix("file-")
        session = SandboxSession(pool, task.tool_set, 1)
        await session.start()
        texts: list[str] = []
        for name, arguments in SOLUTIONS[task_id]:
            spec = task.tool_set.find(name)
            assert spec is not None
            assert check_arguments(spec, arguments) is None
            texts.append((await session.call(name, json.dumps(arguments))).text)
        session.close()
        answer = concluded(task_id, texts)
        assert score_of(task, answer) == 1.0, (task_id, texts)
        assert score_of(task, "unknown") == 0.0


async def test_a_simulated_api_keeps_its_state_in_its_session(
    folder: Path, pool: SandboxPool
) -> None:
    tools = read(folder, row(tools={"openapi": "api.json"})).all_tasks()[0].tool_set
    texts: list[str] = []
    for _ in range(2):
        session = SandboxSession(pool, tools, 5)
        await session.start()
        made = await session.call("addBook", '{"title": "New"}')
        read_again = await session.call("getBook", '{"book_id": 9}')
        assert (made.status, made.text) == (AnswerStatus.OK, read_again.text)
        gone = await session.call("getBook", '{"book_id": 10}')
        assert gone.status is AnswerStatus.TOOL_ERROR
        assert gone.text == "ApiError: 404 Not Found: /books has no '10'"
        texts.append((await session.call("getReader", '{"reader": "bob"}')).text)
        session.close()
    assert texts[0] == texts[1]
