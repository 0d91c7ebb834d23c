"""Checks of paths that a command needs, made before the stack is imported: they take no time."""

import re
from collections.abc import Sequence
from pathlib import Path

from cluster.config.places import BUILT_MODELS
from cluster.config.run_config import RunConfig
from envs.errors import ConfigError, MissingError, StoreError
from rollout.store.run_kind import is_blank
from rollout.store.run_layout import RunLayout, existing_run

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MOST_LISTED = 8
_DEPTH = 2
"""Levels of folders below a path in which runs are looked for."""


def check_inputs(config: RunConfig) -> None:
    """Raise MissingError where the model's folder or the file of tasks does not exist."""
    check_model(config.model.path)
    check_tasks(config)


def check_turns(config: RunConfig) -> None:
    """Raise MissingError where `collect.turns` names a file that does not exist."""
    turns = config.collect.turns
    if turns and not Path(turns).expanduser().is_file():
        raise MissingError(
            f"expected a JSON file at collect.turns (--turns) = {turns!r}, found none"
        )


def check_model(ref: str) -> None:
    """Raise MissingError where `ref` is no model that is built here, no folder and no Hub id."""
    folder = Path(ref).expanduser()
    if ref in BUILT_MODELS or (folder / "config.json").is_file():
        return
    if folder.is_dir():
        raise MissingError(
            f"expected a model folder in model.path, found no config.json in {folder.absolute()}"
        )
    if _HUB_ID.fullmatch(ref) and not folder.parent.is_dir():
        return  # the Hub knows
    if "://" in ref:
        raise MissingError(
            f"expected a model folder in model.path, found the address {ref}: `trialrun fetch` "
            "gets a mirrored run with its model, such as runs/first/model"
        )
    raise MissingError(
        f"expected a model folder in model.path, found nothing at {ref!r} (looked in "
        f"{folder.absolute()}): set it to a Hugging Face model folder, to an id of the Hugging "
        f"Face Hub, or to {' or '.join(BUILT_MODELS)}"
    )


def check_tasks(config: RunConfig) -> None:
    """Raise MissingError where `env.path` names a file or folder that does not exist."""
    path = getattr(config.env, "path", "")
    if path and not Path(path).expanduser().exists():
        raise MissingError(f"expected tasks at env.path = {path!r}, found nothing there")


def check_run_folder(path: Path, *, resume: bool, elsewhere: str) -> None:
    """Raise StoreError where `path` holds a run that is not to be resumed.

    What a failed start left, without any record, is no run. `elsewhere` says how to choose another
    folder.
    """
    layout = RunLayout(path)
    if layout.run_json.exists() and not resume and not is_blank(layout):
        raise StoreError(
            f"there is a run in {path} already: resume it with --resume, or {elsewhere}"
        )


def check_unmirrored(config: RunConfig, command: str) -> None:
    """Raise ConfigError where the recipe mirrors runs and `command` makes many."""
    if config.mirror.url:
        raise ConfigError(
            f"expected no mirror.url in `trialrun {command}`, which makes many runs and may make "
            f"one anew, found {config.mirror.url!r}: set mirror.url='' and copy the folder when it "
            "is done, or mirror single runs of train, sft, collect and eval"
        )


def check_sources(sources: Sequence[str]) -> None:
    """Raise MissingError where a `--from DIR[=WEIGHT]` names no run directory."""
    for source in sources:
        folder = source if Path(source).exists() else source.rpartition("=")[0] or source
        run_at(Path(folder))


def run_at(path: Path) -> RunLayout:
    """Return the layout of the run at `path`.

    Raises MissingError where there is none; it names the runs inside the folder, if any.
    """
    if path.is_dir() and not RunLayout(path).run_json.exists() and (inner := _runs_below(path)):
        listed = ", ".join(str(found) for found in inner[:_MOST_LISTED])
        more = f" and {len(inner) - _MOST_LISTED} more" if len(inner) > _MOST_LISTED else ""
        raise MissingError(f"{path} is not a run but contains runs: name one of {listed}{more}")
    return existing_run(path)


def _runs_below(path: Path) -> list[Path]:
    patterns = ("/".join(["*"] * depth) + "/run.json" for depth in range(1, _DEPTH + 1))
    return sorted(found.parent for pattern in patterns for found in path.glob(pattern))
