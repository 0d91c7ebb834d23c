"""Seeds are derived, not sampled: a seed is a stable hash of what it is used for."""

import hashlib


def stable_hash(*parts: str | int) -> int:
    """Return a 63-bit integer that depends only on `parts`, on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
