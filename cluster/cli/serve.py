"""`trialrun serve`: serves the tools of an environment's tasks over all protocols."""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.config.environments import environment_of
from cluster.config.run_config import RunConfig
from cluster.progress import Progress
from cluster.scheduling.tool_check import say_of_tools
from envs.errors import ConfigError
from envs.gateway.serve import ServedTasks, serve_tasks
from envs.server.main import bind_tcp
from envs.tasks import Environment, Split, Task


@dataclass(frozen=True, slots=True)
class Address:
    """Address to listen on; `port` 0 takes a free one, an empty `token` means none."""

    host: str
    port: int
    token: str


_GENERATED = 12
"""Tasks that are served of an environment that generates them without end."""


def tasks_to_serve(
    environment: Environment, seed: int, split: Split | None, count: int | None
) -> Sequence[Task]:
    """Return the tasks of `split`, of every split of a finite set if None; all of them, or `count`.

    Raises ConfigError where there are fewer.
    """
    if environment.endless:
        return environment.tasks(split or "train", seed, count or _GENERATED)
    if split is not None:
        return environment.tasks(split, seed, count)
    tasks = environment.all_tasks()
    if count is not None and count > len(tasks):
        raise ConfigError(
            f"expected {count} tasks in {environment.name}, found {len(tasks)}: leave out --tasks "
            "to serve all of them"
        )
    return tasks[:count]


def run_serve(config: RunConfig, address: Address, split: Split | None, count: int | None) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises ConfigError (no such tasks, no token off loopback, a port that is taken), IsolationError.
    """
    environment = environment_of(config)
    tasks = tasks_to_serve(environment, config.run.seed, split, count)
    if not environment.endless:
        say_of_tools(config, tasks, Progress())
    listener = bind_tcp(address.host, address.port, address.token)
    host, port = listener.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def say_ready() -> None:
        sys.stdout.write(_welcome(place, tasks[0].id, len(tasks), bool(address.token)))
        sys.stdout.write(f"ready http://{place}\n")
        sys.stdout.flush()

    # Invalid requests are answered to the client; they are no events of this server.
    logging.getLogger("mcp").setLevel(logging.ERROR)
    served = ServedTasks(tasks, config.tools, address.token, os.environ)
    asyncio.run(serve_tasks(served, listener, say_ready))


def _welcome(place: str, task: str, count: int, token: bool) -> str:
    """Return the addresses, and commands to try."""
    header = " -H 'authorization: Bearer TOKEN'" if token else ""
    return (
        f"{count} tasks; the first is {task}\n"
        f"  native   http://{place}/sessions, /calls, /health\n"
        f"  MCP      http://{place}/mcp (the first task), /mcp/TASK, ?purpose=trial&seed=N\n"
        f"  OpenEnv  ws://{place}/ws, /schema, /metadata\n"
        "try:\n"
        f"  curl{header} http://{place}/health\n"
        f"  openenv validate --url http://{place}\n"
        "  python -c 'from openenv import GenericEnvClient as Client; "
        f'print(Client("http://{place}").sync().reset(seed=0).observation)\'\n'
    )
