"""Bodies of replies, expanded piece by piece: small compressed bytes never become many at once.

All clients of foreign servers read with this. They ask for replies without compression; some
servers compress all the same.
"""

import zlib
from collections.abc import AsyncIterable, Iterator, Mapping

from envs.errors import InfraError

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Window sizes that zlib takes for each encoding."""
_PIECE_BYTES = 65_536


class Expander:
    """Expands the parts of one body as they come."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Raises InfraError for a compression that was not asked for and is unknown."""
        found = headers.get("content-encoding", "").strip().lower()
        self._encoding = found or "identity"
        if self._encoding != "identity" and self._encoding not in _WINDOWS:
            raise InfraError(f"expected a reply without compression, found encoding {found[:80]}")
        known = self._encoding in _WINDOWS
        self._zlib = zlib.decompressobj(_WINDOWS[self._encoding]) if known else None
        self._begun = False

    def pieces(self, part: bytes) -> Iterator[bytes]:
        """Yield what `part` holds, in pieces of at most 64 KiB. Raises InfraError."""
        if self._zlib is None:
            yield part
            return
        self._begun = self._begun or bool(part)
        left = part
        while left and not self._zlib.eof:
            try:
                piece = self._zlib.decompress(left, _PIECE_BYTES)
            except zlib.error as error:
                raise InfraError(f"expected a reply in {self._encoding}, found {error}") from error
            left = self._zlib.unconsumed_tail
            if piece:
                yield piece

    def finish(self) -> None:
        """Note the end of the body. Raises InfraError if something is missing."""
        if self._zlib is not None and self._begun and not self._zlib.eof:
            raise InfraError(f"expected a reply in {self._encoding}, found one that is cut off")


async def bounded_body(
    headers: Mapping[str, str], parts: AsyncIterable[bytes], limit: int
) -> tuple[bytes, bool]:
    """Return at most `limit` bytes of a body, and whether there were more; `parts` are as sent.

    Raises InfraError for a compression that is unknown or damaged.
    """
    expander = Expander(headers)
    received = bytearray()
    async for part in parts:
        for piece in expander.pieces(part):
            received += piece
            if len(received) > limit:
                return bytes(received[:limit]), True
    expander.finish()
    return bytes(received), False
