# pyright: reportMissingImports=false
"""Serves two environments with the `openenv` package: `/plain` takes steps, `/tools` has tools.

Run by `.venv-interop`, where that package is; prints the port that it listens on.
"""

import random
import socket
import time

import uvicorn
from fastapi import FastAPI
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_types import (
    CallToolAction,
    CallToolObservation,
    ListToolsAction,
    ListToolsObservation,
    Tool,
    ToolError,
)
from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field


class Guess(Action):
    """Guess the number between 1 and 9."""

    number: int = Field(description="Your guess.", ge=0, le=9)
    wait_s: float = 0.0


class Hint(Observation):
    """What a guess led to."""

    hint: str


class Guessing(Environment):
    """A number to guess; it is drawn from the seed of the reset."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._number = 0
        self._state = State()

    def reset(self, seed=None, episode_id=None):
        self._number = random.Random(seed).randint(1, 9)
        self._state = State(episode_id=episode_id, step_count=0)
        return Hint(hint="guess")

    def step(self, action, timeout_s=None):
        time.sleep(action.wait_s)
        if action.number == 0:
            raise RuntimeError("zero broke it")
        self._state.step_count += 1
        right = action.number == self._number
        hint = "right" if right else "more" if action.number < self._number else "less"
        return Hint(hint=f"{hint} #{self._state.step_count}", reward=float(right), done=right)

    @property
    def state(self):
        return self._state


class Shelf(Environment):
    """A shelf with tools, as an environment that lists them."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._things = []

    def reset(self, seed=None, episode_id=None):
        self._things = []
        return Observation()

    def step(self, action, timeout_s=None):
        if isinstance(action, ListToolsAction):
            text = {"type": "object", "properties": {"thing": {"type": "string"}}}
            tools = [Tool(name="put", description="Put a thing.", input_schema=text)]
            tools.append(Tool(name="look", description="Look.", input_schema={"type": "object"}))
            return ListToolsObservation(tools=tools)
        name = action.tool_name
        if name == "put" and "thing" not in action.arguments:
            error = ToolError(error_type="invalid_args", message="thing: required")
            return CallToolObservation(tool_name=name, error=error)
        if name == "put":
            self._things.append(action.arguments["thing"])
        return CallToolObservation(tool_name=name, result=list(self._things), reward=0.5)

    @property
    def state(self):
        return State()


def main():
    app = FastAPI()
    many = {"max_concurrent_envs": 2}
    app.mount("/plain", create_fastapi_app(Guessing, Guess, Hint, **many))
    app.mount("/tools", create_fastapi_app(Shelf, CallToolAction, CallToolObservation, **many))
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])


if __name__ == "__main__":
    main()
