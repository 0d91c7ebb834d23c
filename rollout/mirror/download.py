"""Files of a mirror, on this machine: every part is checked, and every file appears whole."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from envs.errors import StoreError
from rollout.mirror.head import Head, MirroredFile, part_key, part_of
from rollout.mirror.place import Place
from rollout.mirror.snapshot import MARKER
from rollout.store.journal import make_folder

_AT_ONCE, _PARTS_AT_ONCE = 4, 4
"""Files, and parts of each, that are fetched at once; a part has 64 MiB at most."""
_ORDER = ("episodes/", "index/", "annotations/", "ledger/", "metrics/")
"""Files of a copy change in this order: what is spoken of before what speaks of it."""


class PartGoneError(StoreError):
    """A part is not there: the mirror has a newer head meanwhile, or is damaged."""


def read_file(place: Place, file: MirroredFile) -> bytes:
    """Return the content of a small file. Raises as `fetch_file` does."""
    return b"".join(_part(place, file, number) for number in range(len(file.parts)))


def fetch_file(
    place: Place, file: MirroredFile, target: Path, had: MirroredFile | None = None
) -> None:
    """Make `target` the content of `file`; it is replaced in one piece.

    `had` is what `target` holds of an earlier state: the parts in common are taken from there.
    Raises StoreError for a part that is missing or damaged, and InfraError.
    """
    make_folder(target.parent)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    common = _common(file, had, target)
    try:
        with draft.open("wb") as out:
            if common:
                with target.open("rb") as old:
                    for part in file.parts[:common]:
                        out.write(old.read(part.size))
            for content in _parts_from(place, file, common):
                out.write(content)
        draft.replace(target)
    except OSError as error:
        raise StoreError(f"could not write {target}: {os.strerror(error.errno or 0)}") from error
    finally:
        draft.unlink(missing_ok=True)


def fetch_files(
    place: Place,
    head: Head,
    folder: Path,
    wanted: Callable[[str], bool],
    had: Mapping[str, MirroredFile] | None = None,
) -> None:
    """Bring the files of `head` that are `wanted` to `folder`; see `fetch_file`.

    What is the same as in `had` is left alone. A checkpoint is marked complete after all the rest
    of it is there.
    """
    known = had or {}

    def fetch(file: MirroredFile) -> None:
        fetch_file(place, file, folder / file.path, known.get(file.path))

    new = [
        file
        for file in sorted(filter(lambda file: wanted(file.path), head.files), key=_order)
        if known.get(file.path) != file or not (folder / file.path).is_file()
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _, alike in groupby(new, _order):
            for _ in pool.map(fetch, alike):
                pass


def _order(file: MirroredFile) -> tuple[bool, int]:
    inner = file.path.removeprefix("teacher/")
    place = next((n for n, start in enumerate(_ORDER) if inner.startswith(start)), len(_ORDER))
    return file.path.endswith(f"/{MARKER}"), place


def _parts_from(place: Place, file: MirroredFile, first: int) -> Iterator[bytes]:
    """Yield the parts from number `first` on; a few are fetched at once."""
    numbers = range(first, len(file.parts))
    if len(numbers) < 2:
        yield from (_part(place, file, number) for number in numbers)
        return
    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        for start in range(0, len(numbers), _PARTS_AT_ONCE):
            some = numbers[start : start + _PARTS_AT_ONCE]
            yield from pool.map(lambda number: _part(place, file, number), some)


def _common(file: MirroredFile, had: MirroredFile | None, target: Path) -> int:
    """Return how many parts of `file` `target` begins with."""
    if had is None or not target.is_file() or target.stat().st_size != had.size:
        return 0
    same = 0
    for new, old in zip(file.parts, had.parts, strict=False):
        if new != old:
            break
        same += 1
    return same


def _part(place: Place, file: MirroredFile, number: int) -> bytes:
    start = sum(part.size for part in file.parts[:number])
    expected = file.parts[number]
    key = part_key(file.path, start, expected)
    content = place.read(key)
    if content is None:
        raise PartGoneError(f"{place}: expected {key}, which the head lists, found nothing there")
    if (found := part_of(content)) != expected:
        raise StoreError(
            f"{place}: {key} is damaged: expected {expected.size} bytes with digest "
            f"{expected.digest}, found {found.size} bytes with digest {found.digest}"
        )
    return content
