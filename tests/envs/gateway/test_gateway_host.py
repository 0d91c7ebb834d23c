"""Tool sets that a tool server does not run, behind the gateways of a server that serves tasks."""

import asyncio
import json
import sys

from envs.config import ToolServerConfig
from envs.endpoints import McpStdioEndpoint
from envs.gateway.gateway_host import GatewayHost
from envs.server.wire import CallItem, EncodedCall, OpenItem
from envs.tools import Adaptation, AnswerStatus, CallRule, ToolAnswer, ToolSet, ToolSpec
from tests.envs.server.scripted_host import TOOLS, ScriptedHost

PARAMETERS = {"type": "object", "properties": {"words": {"type": "string"}}}
ADAPTED = ToolSet(
    tools=(ToolSpec(name="say", description="", parameters=PARAMETERS),),  # pyright: ignore[reportArgumentType]
    adaptation=Adaptation(
        level="slight",
        seed=1,
        base=TOOLS,
        rules=(CallRule(target="echo", parameters={"words": "text"}),),
    ),
)
BROKEN = ToolSet(
    tools=(ToolSpec(name="x", description="", parameters={}),),
    endpoint=McpStdioEndpoint(command=("no-such-program-here",)),
)


def opening(tool_set: ToolSet) -> OpenItem:
    return OpenItem(digest=tool_set.digest, seed=3, purpose="execution")


def call(session: str, name: str, **arguments: str) -> CallItem:
    calls = (EncodedCall(name=name, arguments=json.dumps(arguments)),)
    return CallItem(session=session, calls=calls)


async def test_adapted_sets_run_on_sessions_of_their_base() -> None:
    inner = ScriptedHost()
    host = GatewayHost(inner, ToolServerConfig(session_idle_s=0.2), {})
    await host.start()
    assert host.unknown_digests([opening(ADAPTED)]) == [ADAPTED.digest]
    host.add_tool_sets({each.digest: each for each in (ADAPTED, TOOLS)})
    assert host.unknown_digests([opening(ADAPTED), opening(TOOLS)]) == []
    adapted = await host.open_session(opening(ADAPTED))
    plain = await host.open_session(opening(TOOLS))
    assert [item.digest for item in inner.opened] == [TOOLS.digest] * 2
    inner.answer = ToolAnswer(status=AnswerStatus.TOOL_ERROR, text="echo: bad", seconds=0)
    answered = await host.call(0, call(adapted.id, "say", words="a"))
    assert answered.answers[0].text == "say: bad"
    answered = await host.call(0, call(plain.id, "echo", text="a"))
    assert answered.answers[0].text == "echo: bad"
    assert host.knows(adapted.id) and host.knows(plain.id)
    assert host.close([plain.id, plain.id]) == 1
    # The adapted one is idle by and by; the inner host is left with nothing.
    await inner.until(lambda: not inner.open_ids)
    assert not host.knows(adapted.id)
    lost = await host.call(0, call(adapted.id, "say"))
    assert lost.error is not None and lost.error.kind == "unknown_session"
    await host.stop()


async def test_a_foreign_server_that_does_not_start_is_a_typed_error() -> None:
    host = GatewayHost(ScriptedHost(), ToolServerConfig(), {"PATH": "/nowhere"})
    await host.start()
    host.add_tool_sets({BROKEN.digest: BROKEN})
    opened = await asyncio.wait_for(host.open_session(opening(BROKEN)), 10)
    assert opened.error is not None and opened.error.kind == "sandbox"
    assert "no-such-program-here" in opened.error.message
    await host.stop()


SLEEPER = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("method") == "initialize":
        result = {
            "protocolVersion": asked["params"]["protocolVersion"],
            "capabilities": {},
            "serverInfo": {"name": "sleeper", "version": "1"},
        }
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


async def test_processes_of_servers_are_counted() -> None:
    endpoint = McpStdioEndpoint(command=(sys.executable, "-c", SLEEPER))
    outside = ToolSet(tools=BROKEN.tools, endpoint=endpoint)
    host = GatewayHost(ScriptedHost(), ToolServerConfig(max_processes=2), {})
    await host.start()
    sets = {each.digest: each for each in (outside, TOOLS, BROKEN)}
    host.add_tool_sets(sets)
    tries = [host.open_session(opening(outside)) for _ in range(5)]
    opened = await asyncio.wait_for(asyncio.gather(*tries), 60)
    ids = [each.id for each in opened if each.id]
    errors = [each.error for each in opened if each.error]
    assert len(ids) == 2 and {error.kind for error in errors} == {"full"}
    assert all("tools.max_processes" in error.message for error in errors)
    assert (await host.open_session(opening(TOOLS))).id  # needs no process of its own
    assert host.close(ids) == 2
    async with asyncio.timeout(20):
        while (await host.open_session(opening(outside))).error:
            await asyncio.sleep(0.05)
    # One that does not start gives its place back.
    for _ in range(3):
        failed = await host.open_session(opening(BROKEN))
        assert failed.error is not None and failed.error.kind == "sandbox"
    await host.stop()


async def test_sessions_outside_of_the_sandbox_have_a_limit_too() -> None:
    host = GatewayHost(ScriptedHost(), ToolServerConfig(max_sessions=1), {})
    await host.start()
    host.add_tool_sets({each.digest: each for each in (ADAPTED, TOOLS)})
    assert (await host.open_session(opening(ADAPTED))).id
    refused = (await host.open_session(opening(ADAPTED))).error
    assert refused is not None and refused.kind == "full"
    await host.stop()
