"""How large a set of tools may be: it is sent to a tool server in one message."""

from envs.errors import DataFileError

SET_BYTES = 2**26
"""Of all sources together, of which each tool has its own copy in the message."""


def check_set(source: str, tools: int) -> None:
    """Raise DataFileError if `tools` copies of `source` are too long for one message."""
    if len(source) * tools > SET_BYTES:
        raise DataFileError(
            f"expected fewer tools from one source: {tools} tools from {len(source)} characters "
            f"are more than {SET_BYTES} in all; choose some of them, or divide the source"
        )
