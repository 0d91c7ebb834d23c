# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Lists and calls tools with the MCP 1 client.

python mcp1_client.py URL
"""

import asyncio
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from mcp.shared.exceptions import McpError


async def main(url: str) -> None:
    async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as client:
        await client.initialize()
        tools = (await client.list_tools()).tools
        answers = [await client.call_tool(tool.name, {"x": "123"}) for tool in tools]
        assert any(not answer.isError for answer in answers)
        try:
            await client.call_tool("nope", {})
        except McpError as error:
            assert "no tool" in str(error)
        else:
            raise AssertionError("an unknown tool was called")
        print(len(tools), "tools, called")


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(main(sys.argv[1]), 30))
