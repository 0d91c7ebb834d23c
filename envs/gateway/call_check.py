"""The arguments of a client's call, checked beside the event loop where they are long."""

import asyncio
import json

from envs.argument_check import check_arguments
from envs.tools import JsonObject, ToolSpec

_LONG = 8_192


async def fault_of(tool: ToolSpec, arguments: JsonObject) -> str | None:
    """Return a message about the first error in `arguments`, or None."""
    if len(json.dumps(arguments)) <= _LONG:
        return check_arguments(tool, arguments)
    return await asyncio.to_thread(check_arguments, tool, arguments)
