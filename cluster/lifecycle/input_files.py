"""Digests of the files that a recipe names, so that an edit between start and resume is seen."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.config.run_config import RunConfig
from rollout.chat.loading import CHAT_TEMPLATE_FILE, shipped_names, template_path

_OF_MODEL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    CHAT_TEMPLATE_FILE,
)
"""Files of a model folder that decide which tokens a conversation becomes, and where it stops.
Weights are left out: they are large, and a checkpoint replaces them."""
_BLOCK = 1 << 20


def input_digests(config: RunConfig) -> dict[str, str]:
    """Return the SHA-256, in hexadecimal, of every file that `config` names, by its key.

    Files that are not there are left out: another check refuses them.
    """
    return {where: _digest(path) for where, path in _files(config) if path.is_file()}


def edited_files(before: Mapping[str, str], config: RunConfig) -> list[str]:
    """Return the keys of files whose content is not that of `before`.

    A file that was not recorded, as in older run directories, is not compared. One that was
    recorded and is gone counts as edited.
    """
    now = input_digests(config)
    return [where for where, digest in before.items() if now.get(where) != digest]


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


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
