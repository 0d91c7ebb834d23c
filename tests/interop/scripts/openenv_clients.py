# pyright: reportMissingImports=false
"""Speaks OpenEnv with OpenEnv's own clients; fails on the first surprise.

    python openenv_clients.py URL < plan.json

`plan.json`: {question: answer} of the tasks that are served.
"""

import asyncio
import json
import sys

from openenv import GenericEnvClient
from openenv.core.env_server.mcp_types import CallToolAction, ListToolsAction
from openenv.core.mcp_client import MCPToolClient

ANSWERS: dict[str, str] = json.load(sys.stdin)
CLIENTS = 16


async def plays_an_episode(url: str, seed: int) -> None:
    """reset, call, state, begin_execution, answer, close."""
    async with GenericEnvClient(base_url=url) as client:
        first = await client.reset(seed=seed, mode="trial", episode_id=f"episode-{seed}")
        task = first.observation
        assert task["phase"] == "trial" and not first.done and first.reward is None
        tool = task["available_tools"][0]
        assert {"name", "description", "input_schema"} == set(tool)
        call = {"type": "call_tool", "tool_name": tool["name"], "arguments": {"x": "123"}}
        called = (await client.step(call)).observation
        assert called["tool_name"] == tool["name"]
        assert (called["result"] is None) != (called["error"] is None)
        begun = await client.step({"type": "begin_execution"})
        assert begun.observation["phase"] == "execution"
        state = await client.state()
        assert state["episode_id"] == f"episode-{seed}" and state["step_count"] == 2
        right = seed % 2 == 0
        text = ANSWERS[task["question"]] if right else "wrong"
        last = await client.step({"type": "answer", "text": text})
        assert last.done and last.reward == float(right), last
        again = await client.reset(seed=seed)
        assert again.observation["question"] == task["question"], "same seed, another task"


async def is_told_what_is_wrong(url: str) -> None:
    """Errors come as messages with a code; the session goes on."""
    async with GenericEnvClient(base_url=url) as client:
        await client.reset(seed=0)
        for action, code in (
            ({"type": "fly"}, "VALIDATION_ERROR"),
            ({"type": "answer"}, "VALIDATION_ERROR"),
            ({"type": "answer", "text": "1", "extra": 2}, "VALIDATION_ERROR"),
            ({"type": "begin_execution"}, "EXECUTION_ERROR"),
        ):
            try:
                await client.step(action)
            except RuntimeError as error:
                assert f"(code: {code})" in str(error), error
            else:
                raise AssertionError(f"{action} was accepted")
        try:
            await client.reset(task_id="no such task")
        except RuntimeError as error:
            assert "VALIDATION_ERROR" in str(error)
        else:
            raise AssertionError("an unknown task was accepted")
        unknown = await client.step({"type": "call_tool", "tool_name": "nope", "arguments": {}})
        assert unknown.observation["error"]["error_type"] == "tool_not_found"
        assert (await client.state())["done"] is False


async def uses_the_tool_client(url: str) -> None:
    """OpenEnv's client for environments of MCP tools: HTTP and WebSocket on one session."""
    async with MCPToolClient(base_url=url) as client:
        first = await client.reset(seed=2)
        assert first.observation.question in ANSWERS
        tools = await client.list_tools()
        offered = [tool["name"] for tool in first.observation.available_tools]
        assert [tool.name for tool in tools] == offered
        listed = (await client.step(ListToolsAction())).observation
        assert [tool.name for tool in listed.tools] == offered
        action = CallToolAction(tool_name=offered[0], arguments={"x": "123"})
        stepped = (await client.step(action)).observation
        try:
            direct = await client.call_tool(offered[0], x="123")
        except RuntimeError as error:
            assert stepped.error is not None and stepped.error.message in str(error)
        else:
            assert direct == stepped.result
        assert (await client.state()).step_count == 2


async def main(url: str) -> None:
    await asyncio.gather(*(plays_an_episode(url, seed) for seed in range(CLIENTS)))
    await is_told_what_is_wrong(url)
    await uses_the_tool_client(url)
    print(f"{CLIENTS} episodes at once, errors, tool client: as expected")


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(main(sys.argv[1]), 60))
