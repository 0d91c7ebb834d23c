"""Every way to die that tools know: what it is called, and whether dying pays.

    python -m tests.benchmarks.bench_deaths [--markdown] [--episodes 60]

The table has the status of each way's call at each level, and of the call after it. Then a policy
that guesses one of ten numbers plays episodes with tools that answer a wrong guess, and with tools
that die of it: an attempt that the machine failed is played again, up to 16 times, as a run does.
Ends with code 1 where a way is called a failure of the machine.
"""

import argparse
import asyncio
import random
import sys
from dataclasses import dataclass
from typing import get_args

from envs.config import IsolationConfig, IsolationLevel, ToolServerConfig
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec
from tests.envs.sandbox.test_deaths import SOURCE, WAYS

_LEVELS = get_args(IsolationLevel)[:3]
_ATTEMPTS = 16
_GUESSES = 10
_AT_ONCE = 8
_PAYS = ("an exception", "exit code 0", "a null pointer", "half a reply", "two replies")
"""Ways of the experiment: quick ones of each kind."""


@dataclass(frozen=True, slots=True)
class Play:
    """What came of the episodes with one kind of tool."""

    reward: float
    attempts: int
    lost: int


def dying(way: str) -> ToolSet:
    """Return a tool that says whether a guess is right, and dies of a wrong one."""
    body = "".join(f"        {line}\n" for line in way.splitlines())
    wrong = f"    if n != 7:\n{body}        return 'wrong'\n"
    source = f"{SOURCE}\ndef guess(n):\n{wrong}    return 'right'\n"
    spec = ToolSpec(name="guess", description="", parameters={})
    return ToolSet(tools=(spec,), sources=(source,), functions=("guess",))


async def statuses(level: IsolationLevel) -> dict[str, str]:
    """Return the status of each way's call."""
    pool = await _started(level)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(way: str) -> str:
        async with turns:
            session = SandboxSession(pool, dying(WAYS[way]), seed=1)
            await session.start()
            first = await session.call("guess", '{"n": 1}')
            second = await session.call("guess", '{"n": 7}')
            session.close()
            return f"{first.status}, then {second.status}"

    found = await asyncio.gather(*map(one, WAYS))
    await pool.close()
    return dict(zip(WAYS, found, strict=True))


async def play(pool: SandboxPool, tools: ToolSet, episodes: int) -> Play:
    """Guess once per attempt; an episode is right if its guess was."""
    right = attempts = lost = 0
    for episode in range(episodes):
        for attempt in range(_ATTEMPTS):
            attempts += 1
            guess = random.Random(f"{episode} {attempt}").randrange(_GUESSES)
            session = SandboxSession(pool, tools, seed=1)
            await session.start()
            answer = await session.call("guess", f'{{"n": {guess}}}')
            session.close()
            if answer.status is not AnswerStatus.INFRA_ERROR:
                right += answer.text == "right"
                break
            lost += 1
    return Play(right / episodes, attempts, lost)


async def _started(level: IsolationLevel) -> SandboxPool:
    isolation = IsolationConfig(required="seccomp")
    config = ToolServerConfig(isolation=isolation, session_cpu_s=1, session_memory_mib=256)
    pool = SandboxPool(config, level)
    await pool.start()
    return pool


async def _print_all(*, markdown: bool, episodes: int) -> bool:
    tables = {level: await statuses(level) for level in _LEVELS}
    bar = " | " if markdown else "  "
    print(f"{bar}way to die{bar}{bar.join(_LEVELS)}{bar}".strip(" " if markdown else ""))
    if markdown:
        print("|---|" + "---|" * len(_LEVELS))
    for way in WAYS:
        cells = [table[way] for table in tables.values()]
        print(f"{bar}{way}{bar}{bar.join(cells)}{bar}".strip(" " if markdown else ""))
    pool = await _started("namespaces")
    print()
    for name, way in {"it answers": "pass", **{way: WAYS[way] for way in _PAYS}}.items():
        played = await play(pool, dying(way), episodes)
        print(
            f"- {name}: mean reward {played.reward:.2f} of {episodes} episodes, "
            f"{played.attempts} attempts, {played.lost} lost"
        )
    await pool.close()
    return any("infra" in cell for table in tables.values() for cell in table.values())


def main() -> int:
    """Print the table and the experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--episodes", type=int, default=60)
    options = parser.parse_args()
    return int(asyncio.run(_print_all(markdown=options.markdown, episodes=options.episodes)))


if __name__ == "__main__":
    sys.exit(main())
