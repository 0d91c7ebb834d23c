"""`trialrun serve`: serves the tools of an environment's tasks over all protocols."""

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config.environments import environment_of
from cluster.config.run_config import RunConfig
from cluster.progress import Progress
from cluster.scheduling.tool_check import say_of_tools
from envs.errors import ConfigError
from envs.gateway.serve import ServedTasks, serve_tasks
from envs.server.main import bind_tcp, is_loopback, read_token
from envs.tasks import Environment, Split, Task
from envs.tools import ToolSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Address to listen on, and who may come in."""

    host: str
    port: int
    """0 takes a free one."""
    token: str = ""
    """Token that the user gives; empty draws one."""
    token_file: Path | None = None
    """File with the token instead."""
    no_token: bool = False
    """Whether clients need none."""
    allowed_hosts: Sequence[str] = ()
    """Further names of this server."""


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
    given = _given_token(address)
    if address.no_token:
        _check_open(address.host, tasks)
    # A drawn token is only for this machine: others could not know the next one.
    drawn = secrets.token_urlsafe(32) if not given and not address.no_token else ""
    listener = bind_tcp(address.host, address.port, given)
    host, port = listener.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def say_ready() -> None:
        shown = drawn or ("TOKEN" if given else "")
        sys.stdout.write(_welcome(place, tasks[0].id, len(tasks), shown))
        sys.stdout.write(f"ready http://{place}\n")
        sys.stdout.flush()

    # Invalid requests are answered to the client; they are no events of this server.
    logging.getLogger("mcp").setLevel(logging.ERROR)
    served = ServedTasks(
        tasks=tasks,
        config=config.tools,
        token=given or drawn,
        variables=os.environ,
        allowed_hosts=tuple(address.allowed_hosts),
    )
    asyncio.run(serve_tasks(served, listener, say_ready))


def _given_token(address: Address) -> str:
    """Return the user's token, empty for none. Raises ConfigError for two ways at once."""
    ways = (address.token, address.token_file, address.no_token)
    if sum(map(bool, ways)) > 1:
        raise ConfigError(
            "expected one of --token (or TRIALRUN_TOKEN), --token-file and --no-token, found more: "
            "leave out the others"
        )
    return read_token(address.token_file) if address.token_file else address.token.strip()


def _check_open(host: str, tasks: Sequence[Task]) -> None:
    """Raise ConfigError where a server without a token would do harm."""
    if not is_loopback(host):
        raise ConfigError(
            f"expected a token with --host {host}, found --no-token: other machines can reach that "
            "address; leave out --no-token, and set TRIALRUN_TOKEN"
        )
    for task in tasks:
        if place := _place_outside(task.tool_set):
            raise ConfigError(
                f"expected a token, found --no-token: task {task.id} has tools of {place}, which "
                "run outside of the sandbox; leave out --no-token"
            )


def _place_outside(tool_set: ToolSet) -> str:
    """Return the place of tools that run outside of the sandbox; empty if there are none."""
    root = tool_set.root
    if root.endpoint is not None:
        return f"{root.endpoint.kind} {root.endpoint.place}"
    return next(filter(None, map(_place_outside, root.parts)), "")


def _welcome(place: str, task: str, count: int, token: str) -> str:
    """Return the addresses, and commands to try; `token` is empty if clients need none."""
    header = f" -H 'authorization: Bearer {token}'" if token else ""
    url = f"http://token:{token}@{place}" if token else f"http://{place}"
    return (
        f"{count} tasks; the first is {task}\n"
        f"  native   http://{place}/sessions, /calls, /health\n"
        f"  MCP      http://{place}/mcp (the first task), /mcp/TASK, ?purpose=trial&seed=N\n"
        f"  OpenEnv  ws://{place}/ws, /schema, /metadata\n"
        "try:\n"
        f"  curl{header} http://{place}/health\n"
        f"  openenv validate --url {url}\n"
        "  python -c 'from openenv import GenericEnvClient as Client; "
        f'print(Client("{url}").sync().reset(seed=0).observation)\'\n'
    )
