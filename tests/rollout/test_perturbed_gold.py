"""Gold calls of every kind of source, made through perturbed tools, still score 1."""

import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.config.environments import environment_of
from cluster.config.run_config import RunConfig
from envs.config import PerturbationLevel
from envs.perturbation.perturb import perturb
from envs.tasks import Task
from envs.tasksets.file.config import FileEnvConfig
from envs.tools import JsonObject, ToolCall, ToolService
from rollout.chat.template import ChatTemplate
from tests.envs.perturbation.written_calls import as_the_policy_writes_it, calm
from tests.rollout.own_world import TOOLS, Row, answer, call, play, real_tools

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEEDS = 2
PYTHON = """
import datetime
from enum import Enum
class Kind(Enum):
    CASH = "cash"
    CARD = "card"
class Till:
    def __init__(self): self._log = []
    def pay(self, amount: int, /, kind: Kind, note: str | None = None, *tags: str, **more: int):
        self._log.append([amount, kind.value, note, tags, more])
    def close(self, day: datetime.date, final: bool = False, share: float = 0.5):
        self._log.append([str(day), final, share])
    def year(self, of: str = "1999"):
        self._log.append(of)
    def _state(self): return self._log
"""
API = """
openapi: 3.1.0
x-room: &room {application/json: {schema: {$ref: "#/components/schemas/Room"}}}
x-told: &told {"200": {content: *room}}
paths:
  /rooms:
    get:
      operationId: rooms
      responses:
        "200":
          content:
            application/json: {schema: {type: array, items: {$ref: "#/components/schemas/Room"}}}
    post: {operationId: 新房间, requestBody: {content: *room}, responses: *told}
  /rooms/{id}:
    parameters: [{name: id, in: path, required: true, schema: {type: integer}}]
    get:
      parameters: [{name: id, in: query, schema: {type: string}}]
      responses: *told
    patch:
      operationId: change.room
      parameters: [{name: notify, in: query, schema: {type: boolean, default: true}}]
      requestBody: {content: *room}
      responses: *told
    put:
      operationId: replace
      requestBody:
        content:
          application/merge-patch+json: {schema: {$ref: "#/components/schemas/Room"}}
      responses: *told
    delete: {operationId: drop, responses: {"204": {description: Gone.}}}
components:
  schemas:
    Room:
      type: object
      required: [name]
      additionalProperties: {type: string}
      properties:
        id: {type: integer, readOnly: true}
        name: {type: string, minLength: 1}
        floor: {type: string, enum: ["1", "2"]}
        open: {type: boolean}
        price: {type: number, minimum: 0}
        tags: {type: array, items: {type: string}}
        owner: {anyOf: [{type: "null"}, {$ref: "#/components/schemas/Owner"}]}
    Owner: {type: object, properties: {who: {type: string}, age: {type: [integer, "null"]}}}
"""
SERVER = """
import json, sys
from pathlib import Path
from pydantic import BaseModel
from mcp.server.mcpserver import MCPServer
place, server = Path(sys.argv[1]) / "log", MCPServer("log")

class Item(BaseModel):
    name: str
    count: int = 1

def log() -> str:
    return place.read_text() if place.exists() else ""

@server.tool()
def put(item: Item, urgent: bool, place_of: str | None = None, weights: list[float] = []) -> str:
    text = log() + repr((item, urgent, place_of, weights))
    place.write_text(text)
    return "put"

@server.tool()
def look() -> str:
    return log()

server.run("stdio")
"""
Calls = list[tuple[str, JsonObject]]
PYTHON_CALLS: Calls = [
    ("pay", {"amount": 3, "kind": "card", "note": None, "tags": ["a", "b"]}),
    ("close", {"day": "2026-02-03", "final": True, "share": 0.25}),
    ("pay", {"amount": -1, "kind": "cash"}),
    ("year", {"of": "2001"}),
]
API_CALLS: Calls = [
    ("新房间", {"name": "A", "floor": "2", "open": False, "price": 2, "tags": ["x"]}),
    ("change_room", {"id": 1, "name": "B", "price": 0.5, "owner": {"who": "x", "age": None}}),
    ("replace", {"id": 2, "name": "C", "floor": "1", "owner": None}),
    ("drop", {"id": 3}),
]
SERVER_CALLS: Calls = [
    ("put", {"item": {"name": "cup", "count": 2}, "urgent": True, "weights": [1, 2.5]}),
    ("put", {"item": {"name": "pen"}, "urgent": False, "place_of": "007"}),
]
ROOMS = [{"id": number, "name": "N", "floor": "1"} for number in (1, 2, 3)]
TILL: Row = {"python": "till.py"}
ROOM: Row = {"openapi": "api.yaml", "fixtures": "fixtures.json"}
LOG: Row = {"mcp": {"command": [sys.executable, "log.py", "{scratch}"]}}
CASES: dict[str, tuple[list[Row], Calls, Calls]] = {
    "python": ([TILL], PYTHON_CALLS, []),
    "openapi": ([ROOM], API_CALLS, []),
    "mcp": ([LOG], SERVER_CALLS, [("look", {})]),
    "all": ([TILL, ROOM, LOG], [*SERVER_CALLS, *API_CALLS], [("look", {}), ("rooms", {})]),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tools() -> AsyncIterator[ToolService]:
    async with real_tools() as service:
        yield service


def rows_of(calls: Calls) -> list[Row]:
    return [{"name": name, "arguments": arguments} for name, arguments in calls]


def task_of(folder: Path, case: str) -> Task:
    sources, calls, probes = CASES[case]
    for name, text in (("till.py", PYTHON), ("api.yaml", API), ("log.py", SERVER)):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "fixtures.json").write_text(json.dumps({"/rooms": ROOMS}))
    scorer: Row = {"gold": rows_of(calls), **({"probes": rows_of(probes)} if probes else {})}
    row = {"id": "a", "question": "?", "tools": sources, "scorers": [scorer]}
    (folder / "tasks.jsonl").write_text(json.dumps(row))
    tools = TOOLS.model_copy(update={"request_timeout_s": 90.0})
    config = RunConfig(env=FileEnvConfig(path=str(folder)), tools=tools)
    [task] = environment_of(config).all_tasks()
    return task


def turns(task: Task, calls: Calls) -> list[str]:
    """Return the turns of a policy that means `calls` and sees the perturbed tools."""
    written = []
    for name, arguments in calls:
        made = as_the_policy_writes_it(task.tool_set, ToolCall(name=name, arguments=arguments))
        written.append(call(made.name, **made.arguments))
    return [*written, answer("done")]


@pytest.mark.parametrize("level", ["slight", "medium", "heavy", "union"])
@pytest.mark.parametrize("case", ["python", "openapi"])
async def test_gold_calls_through_a_perturbation_score_one(
    tools: ToolService,
    template: ChatTemplate,
    tmp_path: Path,
    case: str,
    level: PerturbationLevel,
) -> None:
    await check(tools, template, task_of(tmp_path, case), case, level)


@pytest.mark.real
@pytest.mark.parametrize("case", ["mcp", "all"])
async def test_gold_calls_of_servers_through_a_perturbation_score_one(
    template: ChatTemplate, tmp_path: Path, case: str
) -> None:
    task = task_of(tmp_path, case)
    async with real_tools(TOOLS.model_copy(update={"request_timeout_s": 90.0})) as tools:
        await check(tools, template, task, case, "union", seeds=1)


async def check(
    tools: ToolService,
    template: ChatTemplate,
    task: Task,
    case: str,
    level: PerturbationLevel,
    seeds: int = SEEDS,
) -> None:
    calls = CASES[case][1]
    for seed in range(seeds):
        seen = replace(task, tool_set=calm(perturb(task.tool_set, level, seed)))
        whole = await play(tools, template, seen, turns(seen, calls))
        errors = [turn.policy_error for turn in whole.turns]
        assert whole.reward == 1.0, (seed, errors, whole.error, whole.score_notes)
        part = await play(tools, template, seen, turns(seen, calls[1:]))
        assert part.reward == 0.0, (seed, part.error)
