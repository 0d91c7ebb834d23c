"""A world with a source of every kind, and the models that it asks, on loopback.

Every source has a state that one call changes. The calls of trials differ from those of the
execution, so a trace that a trial leaves is seen in what the execution is told.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from learner.pretrained.tiny_model import build_tiny_model
from tests.rollout.chat_server import ChatServer, chat_server

POSITIONS = 4096
TASKS = 4
ANSWER = "15"
_FILES = {
    "bank.py": '''
class Bank:
    """Its state is in its attributes."""

    def __init__(self, balance: int):
        self.balance = balance

    def pay(self, x: int) -> int:
        """Pay in; returns the balance."""
        self.balance += x
        return self.balance
''',
    "diary.py": '''
from pathlib import Path


class Diary:
    """Its state is a file in the folder of its session."""

    def note(self, text: str) -> int:
        """Write a line; returns how many there are."""
        with Path("diary.txt").open("a") as file:
            file.write(text + "\\n")
        return len(self._lines())

    def _lines(self) -> list[str]:
        path = Path("diary.txt")
        return path.read_text().splitlines() if path.exists() else []

    def _state(self) -> list[str]:
        return self._lines()
''',
    "shelf.py": '''
MOVES: list[str] = []


class Shelf:
    """Its state is in its class and in its module."""

    things: list[str] = ["cup"]

    def put(self, item: str) -> list[str]:
        """Put something on the shelf; returns what is there."""
        MOVES.append(item)
        self.things.append(item)
        return self.things

    def _state(self) -> dict[str, list[str]]:
        return {"things": self.things, "moves": MOVES}
''',
    "shop.py": '''
import json, sys
from pathlib import Path
from mcp.server.mcpserver import MCPServer

orders, journal = Path(sys.argv[1]), Path(sys.argv[2])
server = MCPServer("shop")

@server.tool()
def cancel(code: str) -> str:
    """Cancel an order; returns its status before."""
    state = json.loads(orders.read_text())
    before, state[code] = state[code], "cancelled"
    orders.write_text(json.dumps(state))
    with journal.open("a") as file:
        file.write(f"{orders.parent} {before}\\n")
    return before

@server.tool()
def status(code: str) -> str:
    """Tell the status of an order."""
    return json.loads(orders.read_text())[code]

server.run("stdio")
''',
    "orders.json": '{"7": "open"}',
    "api.yaml": """
openapi: 3.1.0
info: {title: Meetings, version: "1"}
paths:
  /meetings:
    get:
      operationId: meetings
      responses:
        "200":
          content:
            application/json:
              schema: {type: array, items: {$ref: "#/components/schemas/Meeting"}}
    post:
      operationId: book
      requestBody:
        required: true
        content: {application/json: {schema: {$ref: "#/components/schemas/Meeting"}}}
      responses:
        "201":
          content: {application/json: {schema: {$ref: "#/components/schemas/Meeting"}}}
components:
  schemas:
    Meeting:
      type: object
      required: [text]
      properties: {id: {type: integer, readOnly: true}, text: {type: string}}
""",
    "fixtures.json": '{"/meetings": [{"id": 1, "text": "lunch"}]}',
    "reward.py": """
WANTED = {
    "Bank": {"balance": 15},
    "Diary": ["rain"],
    "Shelf": {"things": ["cup", "pen"], "moves": ["pen"]},
    "Simulation": {
        "/meetings": {"1": {"id": 1, "text": "lunch"}, "2": {"id": 2, "text": "tea"}},
    },
}


def score(state):
    parts = {name: float(state[name] == value) for name, value in WANTED.items()}
    return {**parts, "score": min(parts.values())}
""",
}
_GOLD = [
    {"name": "pay", "arguments": {"x": 5}},
    {"name": "note", "arguments": {"text": "rain"}},
    {"name": "put", "arguments": {"item": "pen"}},
    {"name": "cancel", "arguments": {"code": "7"}},
    {"name": "book", "arguments": {"text": "tea"}},
]
TOOLS = (*(call["name"] for call in _GOLD), "step")
FRESH = ("15", "1", '["cup", "pen"]', "open", '{"id": 2, "text": "tea"}')
"""What the calls of the execution are told where no trial has left a trace."""
_SCORERS = [
    {"function": "reward.py"},
    {"environment": "sum"},
    {"judge": "Money was paid in."},
    {"probes": [{"name": "status", "arguments": {"code": "7"}, "expect": "cancelled"}]},
    {"gold": _GOLD, "probes": [{"name": "status", "arguments": {"code": "7"}}]},
]


def write_world(folder: Path, openenv: str) -> Path:
    """Write the tasks and the files of their tools; `openenv` is the address of a server."""
    folder.mkdir()
    for name, text in _FILES.items():
        (folder / name).write_text(text.lstrip("\n"))
    shop = [sys.executable, "shop.py", "{scratch}/orders.json", "journal.txt"]
    tools = [
        {"python": "bank.py", "arguments": {"balance": 10}},
        {"python": "diary.py"},
        {"python": "shelf.py"},
        {"mcp": {"command": shop, "start": ["cp", "orders.json", "{scratch}/"]}},
        {"openapi": "api.yaml", "fixtures": "fixtures.json"},
        {"openenv": {"url": openenv, "world": True}},
    ]
    row = {"split": "train", "answer": ANSWER, "tools": tools, "scorers": _SCORERS}
    rows = ({"id": str(n), "question": f"Do all, {n}.", **row} for n in range(TASKS))
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_model(folder: Path) -> Path:
    """Write the tiny model with room for the episodes of this world."""
    build_tiny_model(folder, 0)
    for name, key in (
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), key: POSITIONS}))
    return folder


def calls(x: int, text: str, item: str, booked: str, message: str) -> list[dict[str, Any]]:
    """Return one call of each source."""
    pairs = zip(TOOLS, ({"x": x}, {"text": text}, {"item": item}, {"code": "7"}), strict=False)
    made = [{"name": name, "arguments": arguments} for name, arguments in pairs]
    made.append({"name": "book", "arguments": {"text": booked}})
    return [*made, {"name": "step", "arguments": {"message": message}}]


TRIAL = calls(8, "fog", "mug", "tea", "oh")
EXECUTION = calls(5, "rain", "pen", "tea", "good night")


def turn(made: list[dict[str, Any]]) -> str:
    return "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in made)


TURNS = (
    turn(TRIAL),
    "<experience>go</experience>",
    turn(EXECUTION),
    f"<answer>{ANSWER}</answer>",
)


@contextmanager
def models() -> Iterator[ChatServer]:
    """Serve `teacher`, which knows the turns, and two judges: `judge`, which looks whether money
    was paid in, and `coin`, which passes every other episode.
    """

    def reply(request: dict[str, Any], number: int) -> str:
        messages = request["messages"]
        if request["model"] == "teacher":
            return TURNS[sum(message["role"] == "assistant" for message in messages)]
        passes = "pay" in messages[-1]["content"] if request["model"] == "judge" else number % 2
        return json.dumps({"reason": "seen", "verdict": "pass" if passes else "fail"})

    with chat_server(reply) as served:
        yield served


_SERVE = """
import socket, sys, uvicorn
sys.path.insert(0, ".")
from openenv.core.env_server.http_server import create_app
from models import ParrotAction, ParrotObservation
from server.parrot_environment import ParrotEnvironment
app = create_app(ParrotEnvironment, ParrotAction, ParrotObservation, max_concurrent_envs=64)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])
"""


@contextmanager
def parrot(folder: Path, programs: Path) -> Iterator[str]:
    """Serve OpenEnv's own example, which echoes and rewards each letter with 0.1, up to 1; with
    room for many sessions, as its comment says. Yield its address.
    """
    made = subprocess.run(
        [str(programs / "openenv"), "init", "parrot"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    process = subprocess.Popen(
        [str(programs / "python"), "-c", _SERVE], cwd=folder / "parrot", stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
