"""Tokens as text, where the run's tokenizer is on this machine."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.late_imports import import_late

_MOST_BYTES = 64 << 20


def find_tokenizer(folders: tuple[Path, ...]) -> Path | None:
    """Return the first `tokenizer.json` in the folders of the run's model."""
    for folder in folders:
        path = folder / "tokenizer.json"
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:
            return path
    return None


def rendered(path: Path, token_ids: list[int]) -> list[str] | None:
    """Return the text of each token; None where the tokenizer cannot be read.

    A token that is a part of a character reads as a replacement character.
    """
    tokenizer = _load(str(path), path.stat().st_mtime_ns)
    if tokenizer is None:
        return None
    return [tokenizer.decode([token], skip_special_tokens=False) for token in token_ids]


@lru_cache(maxsize=2)
def _load(path: str, mtime_ns: int) -> Any:
    """Return the tokenizer; `mtime_ns` makes a changed file be read again."""
    try:
        return import_late("tokenizers").Tokenizer.from_file(path)
    except Exception:  # the library raises plain exceptions for files that it cannot read
        return None
