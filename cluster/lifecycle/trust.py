"""Whose run directory it is, and what may be taken from it (see SECURITY.md)."""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from cluster.config.places import home
from cluster.config.run_config import RunConfig
from cluster.lifecycle.input_files import edited_files
from cluster.lifecycle.recipe_risks import risks_of, without
from cluster.lifecycle.user_key import KEY_FILE, no_key_reason, run_keys
from cluster.progress import Progress
from envs.errors import ConfigError, StoreError
from learner.signing import UNSIGNED, Signing
from rollout.store.run_layout import RunLayout, read_run_info
from rollout.store.run_signature import (
    Origin,
    origin_of,
    read_signature,
    vouches_for,
    write_signature,
)

TRUST = "--trust-run"
_RECIPE = re.compile(r"config(-until-\d+)?\.toml")
_MARKS = ("run.json", "manifest.jsonl", "ledger", "episodes")
"""What makes a folder a run directory, even if a part of it was removed."""


def keys_of(layout: RunLayout) -> list[bytes]:
    """Return this user's keys for a run. Raises StoreError, ConfigError."""
    return run_keys(read_run_info(layout).run, os.environ)


def origin(layout: RunLayout) -> Origin:
    """Return whose run a directory holds. Raises StoreError, ConfigError."""
    return origin_of(layout, keys_of(layout))


def is_own(layout: RunLayout) -> bool:
    """Whether this user has signed the run. A directory that cannot be read is not theirs."""
    try:
        return origin(layout) is Origin.OWN
    except (StoreError, OSError):
        return False


def knows_writer(layout: RunLayout) -> bool:
    """Whether `writer.json`, which names a cluster, was written by this user."""
    try:
        return vouches_for(layout, keys_of(layout), layout.writer)
    except (StoreError, OSError):
        return False


def sign_run(layout: RunLayout, progress: Progress, *, accept: bool) -> None:
    """Sign a run that is open for writing; `accept` as for `write_signature`.

    Says so if there is no key. Raises StoreError.
    """
    keys = keys_of(layout)
    if keys:
        write_signature(layout, keys, accept=accept)
        return
    progress.say(
        f"the run is not signed, so other users' rules hold for it: {no_key_reason(os.environ)}"
    )


def signing_of(layout: RunLayout) -> Signing:
    """Return how the checkpoints of a run that this user has opened are signed, and which of them
    are loaded. Raises StoreError, ConfigError.
    """
    keys = keys_of(layout)
    signature = read_signature(layout, keys)
    accepted = (
        frozenset(signature.checkpoints.values()) if signature is not None else frozenset[str]()
    )
    return Signing(tuple(keys), accepted)


def check_resumable(layout: RunLayout, *, trusted: bool) -> bool:
    """Check that a run may be resumed; return whether all of its content is to be signed.

    The recipe is the one that the user gave. Raises StoreError for somebody else's checkpoints,
    unless they are `trusted`.
    """
    if trusted or origin(layout) is Origin.UNSIGNED:
        return True
    signed = (
        read_signature(layout, keys_of(layout)) is not None
    )  # then each checkpoint is looked at
    if not signed and next(layout.checkpoints.glob("*/complete"), None):
        raise _foreign_checkpoints(layout)
    return False


def run_holding(recipe: Path) -> RunLayout | None:
    """Return the run directory that a recipe file lies in; None for a recipe of its own."""
    if not recipe.is_file():
        return None
    for folder in recipe.resolve().parents:
        if (folder / "run.json").exists() or (
            _RECIPE.fullmatch(recipe.name)
            and folder == recipe.resolve().parent
            and any((folder / mark).exists() for mark in _MARKS)
        ):
            return RunLayout(folder)
    return None


def check_recipe(
    recipe: Path, config: RunConfig, *, trusted: bool, given: Collection[str] = ()
) -> None:
    """Check that a recipe which lies in a run directory is the user's, or can do no harm.

    `given` are the keys that the user has typed. Raises ConfigError.
    """
    layout = run_holding(recipe)
    if layout is None or trusted or owns_recipe(layout, recipe, config):
        return
    check_harmless(layout, config, given)


def check_harmless(
    layout: RunLayout,
    config: RunConfig,
    given: Collection[str] = (),
    only: Sequence[str] = (),
    *,
    plays: bool = True,
) -> None:
    """Raise ConfigError where a recipe of a run of unknown origin could do harm.

    `only` are the sections and keys that the command uses; all of them where it is empty. `plays`
    says whether it plays episodes.
    """
    found = risks_of(config, layout.root, home(os.environ) / "models")
    found = [risk for risk in found if plays or not risk.played]
    found = without(found, given)
    if only:
        unused = without(found, only)
        found = [risk for risk in found if risk not in unused]
    if found:
        raise ConfigError(
            f"the recipe in {layout.root} {_what_is_wrong(layout)}, and it would do what only a "
            f"recipe of your own may: {'; '.join(map(str, found))}. Set these keys on the command "
            f"line, or use a recipe outside of the run. {_way_out()}"
        )


def reading_of(
    layout: RunLayout, recipe: Path, config: RunConfig, checkpoint: Path | None, *, trusted: bool
) -> Signing:
    """Return how the checkpoint is checked from which a run is repeated with one of its recipes.

    Raises ConfigError for a recipe, and StoreError for a checkpoint, of somebody else, unless they
    are `trusted`.
    """
    if trusted:
        return UNSIGNED
    if not owns_recipe(layout, recipe, config):
        used = ("learner", "model", "run.models_dir", "cluster.shm_dir")
        check_harmless(layout, config, only=used, plays=False)
    if read_signature(layout, keys_of(layout)) is not None:
        return signing_of(layout)
    if checkpoint is not None and origin(layout) is not Origin.UNSIGNED:
        raise _foreign_checkpoints(layout)
    return UNSIGNED


def owns_recipe(layout: RunLayout, recipe: Path, config: RunConfig) -> bool:
    """Whether the user has signed a recipe of a run, and files in the run that it names are as they
    were then.
    """
    try:
        keys = keys_of(layout)
        info = read_run_info(layout)
    except (StoreError, OSError):
        return False
    if origin_of(layout, keys) is not Origin.OWN or not vouches_for(layout, keys, recipe):
        return False
    path = str(getattr(config.env, "path", ""))
    inner = path and (layout.root / path).resolve().is_relative_to(layout.root.resolve())
    return not inner or not edited_files(info.input_digests, config)


def _foreign_checkpoints(layout: RunLayout) -> StoreError:
    return StoreError(
        f"expected checkpoints of your own in {layout.root}, found that this run "
        f"{_what_is_wrong(layout)}: checkpoints are pickles, and loading one that somebody made to "
        f"harm you could run code. {_way_out()}"
    )


def _what_is_wrong(layout: RunLayout) -> str:
    """Return in words why a run does not count as the user's."""
    if not (layout.signature.exists() or layout.signature.is_symlink()):
        return "has no signature of yours: it is of an older version, or of somebody else"
    try:
        keys = keys_of(layout)
    except StoreError:
        keys = []
    if not keys:
        return f"has a signature that cannot be checked ({no_key_reason(os.environ)})"
    if read_signature(layout, keys) is None:
        return "is signed with another key than yours"
    return "was changed after you signed it"


def _way_out() -> str:
    return (
        f"If it is yours, from another machine or account, set {KEY_FILE} to the key that it was "
        f"signed with; if you trust who made it, add {TRUST}"
    )
