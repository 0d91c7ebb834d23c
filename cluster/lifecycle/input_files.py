"""Digests of the files that a recipe names, so that an edit between start and resume is seen."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from cluster.config.run_config import RunConfig
from rollout.chat.shipped import CHAT_TEMPLATE_FILE, shipped_names, template_path
from rollout.store.run_layout import RunKind

_OF_MODEL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    CHAT_TEMPLATE_FILE,
)
"""Files of a model folder that decide which tokens a conversation becomes, and where it stops.
Weights are left out: they are large, and a checkpoint replaces them."""
_TURNS = "collect.turns"
"""Key of a file that collections alone read."""
_BLOCK = 1 << 20
_LONGEST_NAME = 255
"""Bytes that a file name may have at most; a question is longer, or names no file."""


def input_digests(config: RunConfig, kind: RunKind) -> dict[str, str]:
    """Return the SHA-256, in hexadecimal, of every file that a run of `kind` reads of those that
    `config` names, by its key.

    Files that are not there are left out: another check refuses them.
    """
    found = _digests(config)
    return found if kind is RunKind.COLLECT else {w: d for w, d in found.items() if w != _TURNS}


def edited_files(before: Mapping[str, str], config: RunConfig) -> list[str]:
    """Return the keys of files whose content is not that of `before`.

    A file that was not recorded, as in older run directories, is not compared. One that was
    recorded and is gone counts as edited.
    """
    now = _digests(config)
    return [where for where, digest in before.items() if now.get(where) != digest]


def _digests(config: RunConfig) -> dict[str, str]:
    return {where: _digest(path) for where, path in _files(config) if path.is_file()}


def _files(config: RunConfig) -> Iterator[tuple[str, Path]]:
    template = config.model.chat_template
    if template and template not in shipped_names():
        yield "model.chat_template", template_path(template)
    folder = Path(config.model.path)
    for name in _OF_MODEL:
        yield f"model.path/{name}", folder / name
    given = str(getattr(config.env, "path", ""))
    if given:
        path = Path(given)
        path = path / "tasks.jsonl" if path.is_dir() else path
        yield "env.path", path
        yield from ((f"env.path/{name}", path.parent / name) for name in sorted(_beside(path)))
    if config.collect.turns:
        yield _TURNS, Path(config.collect.turns)


def _beside(tasks: Path) -> set[str]:
    """Return the names in a file of tasks, one JSON object per line, that are files beside it, such
    as the sources of tools. A line that is no JSON names none: another check refuses it.
    """
    if tasks.suffix != ".jsonl" or not tasks.is_file():
        return set()
    names = set[str]()
    for line in tasks.read_bytes().splitlines():
        with suppress(ValueError):
            names.update(_strings(json.loads(line)))
    return {name for name in names if _is_file_name(name) and (tasks.parent / name).is_file()}


def _is_file_name(text: str) -> bool:
    return text.isprintable() and 0 < len(text.encode()) <= _LONGEST_NAME


def _strings(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value if isinstance(value, list) else value.values():
            yield from _strings(item)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
