"""The life of a run directory, for every kind of run: checked, then created or resumed.

`check_run` answers every question that needs no cluster and writes nothing, so that a start that
fails leaves no directory which would block the corrected command. `Opening.open` then creates the
directory, or opens it where it was left.
"""

import os
import shlex
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path

from cluster.config.places import with_absolute_inputs
from cluster.config.run_config import RunConfig, to_toml
from cluster.lifecycle.input_files import edited_files, input_digests
from cluster.lifecycle.lost_checkpoints import check_checkpoints
from cluster.lifecycle.mirroring import check_and_restore, start_mirror
from cluster.lifecycle.resume_check import differences
from cluster.lifecycle.resume_rules import check_unchanged
from cluster.lifecycle.retention import newest_checkpoint
from cluster.lifecycle.stored_config import stored_config
from cluster.lifecycle.trust import check_resumable, is_own, sign_run
from cluster.lifecycle.writer import record_writer
from cluster.progress import Progress
from envs.errors import ConfigError, MissingError, StoreError
from rollout.store.journal import replace_file
from rollout.store.run_directory import RunDirectory, check_new_folder
from rollout.store.run_kind import is_blank, kind_of
from rollout.store.run_layout import RunInfo, RunKind, RunLayout, read_run_info
from rollout.store.run_lock import wait_for_silent_writer

STACK = ("torch", "deepspeed", "ray", "transformers", "pyarrow")
"""Packages whose versions `run.json` records."""
_PLACES = ("run.dir", "run.name", "run.models_dir")
_NO_CHECKPOINT = -1
_CHOOSE_NAME = "choose another run.name"
_INSTEAD = {
    RunKind.COLLECT: "choose another --out",
    RunKind.EVAL: "name another folder with --run",
}


class Resume(StrEnum):
    """What to do where a run exists already."""

    NO = "no"
    """Refuse: only a new run is wanted."""
    REQUIRED = "required"
    """Resume it, and refuse where there is none: `--resume`."""
    IF_PRESENT = "if_present"
    """Resume it, or else start a new one: `--requeue`."""

    @classmethod
    def flag(cls, *, resume: bool, requeue: bool = False) -> "Resume":
        """Return what the options `--resume` and `--requeue` of a command mean."""
        if requeue:
            return cls.IF_PRESENT
        return cls.REQUIRED if resume else cls.NO


class _Found(StrEnum):
    NOTHING = "nothing"
    BLANK = "blank"
    RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A run that may be created or resumed: every check has passed, nothing is written yet."""

    kind: RunKind
    path: Path
    config: RunConfig
    found: _Found
    accepts: bool = False
    """Whether the user answers for all that is in the directory, which is then signed as theirs."""

    @property
    def resumes(self) -> bool:
        """Whether a run with recorded work is resumed."""
        return self.found is _Found.RUN

    def open(self, progress: Progress) -> RunDirectory:
        """Create the run directory, or open it at its newest checkpoint; its lock is taken.

        Settings that changed are logged and recorded. Raises StoreError where another process
        writes to it.
        """
        new = self.found is _Found.NOTHING
        run = new_run(self.path, self.config, self.kind) if new else RunDirectory.open(self.path)
        if run.lock_warning:
            progress.say(run.lock_warning)
        try:
            record_writer(run.layout, os.environ)
            if self.found is _Found.BLANK:
                run.restart(to_toml(self.config), _info(self.config, self.kind))
            elif self.found is _Found.RUN:
                self._resume(run, progress)
            sign_run(run.layout, progress, accept=self.accepts)
            if self.kind is not RunKind.TEACHER:  # it is part of its SFT run
                start_mirror(run, self.config, progress)
        except BaseException:
            run.close()
            raise
        return run

    def _resume(self, run: RunDirectory, progress: Progress) -> None:
        training = self.kind is RunKind.TRAIN
        checkpoint = newest_checkpoint(run.layout.checkpoints) if training else None
        step = int(checkpoint.name) if checkpoint else 0
        if training:
            after = (
                f"the checkpoint of step {step}"
                if step
                else "the initial model: it has no checkpoint yet"
            )
            progress.say(f"the run in {run.path} continues from {after}")
        before = _comparable(stored_config(run.layout.config_toml))
        changed = differences(before, _comparable(self.config), but=_PLACES)
        if changed:
            after = f" after step {step}" if training else ""
            progress.say(f"resuming{after} with other settings: {'; '.join(changed)}")
            run.reconfigure(to_toml(self.config), step)
        if not self.accepts and not is_own(run.layout):  # places in it are somebody else's
            replace_file(run.layout.config_toml, to_toml(self.config).encode())
        if self.kind is not RunKind.SFT:  # it schedules no episodes
            run.recover(step if training else _NO_CHECKPOINT)


def check_run(
    kind: RunKind, path: Path, config: RunConfig, resume: Resume, *, trusted: bool = False
) -> Opening:
    """Check that a run of `kind` may start, or be resumed, at `path`; writes nothing.

    A run that has recorded nothing counts as none: it starts over under any settings. Raises
    StoreError where the folder holds something else, a run of another kind, one that another
    process writes, one that is not to be resumed, or one with checkpoints of somebody else, unless
    they are `trusted`; MissingError where there is none to resume;
    ConfigError where `config` would make another experiment of it (`resume_rules`).
    """
    layout = RunLayout(path)
    if not layout.run_json.exists():
        if resume is Resume.REQUIRED:
            raise MissingError(
                f"expected {kind.words} to resume in {path}, found none: check the name, or leave "
                "out --resume to start it"
            )
        check_new_folder(path)
        return Opening(kind=kind, path=path, config=config, found=_Found.NOTHING)
    if wait_for_silent_writer(layout):
        raise StoreError(
            f"another process is writing to the run in {path}: wait for its end or stop it first"
        )
    if is_blank(layout):
        return Opening(kind=kind, path=path, config=config, found=_Found.BLANK)
    _check_resumable(kind, layout, config, resume)
    accepts = check_resumable(layout, trusted=trusted)
    return Opening(kind=kind, path=path, config=config, found=_Found.RUN, accepts=accepts)


def open_run(
    kind: RunKind, path: Path, config: RunConfig, resume: Resume, progress: Progress
) -> RunDirectory:
    """Check and open a run in one go. Raises as `prepare_run` and `Opening.open` do."""
    return prepare_run(kind, path, config, resume, progress).open(progress)


def prepare_run(
    kind: RunKind,
    path: Path,
    config: RunConfig,
    resume: Resume,
    progress: Progress,
    *,
    trusted: bool = False,
) -> Opening:
    """Do as `check_run`, and before that restore a run that is not there from its mirror.

    Raises as `check_run` and `check_and_restore` do.
    """
    check_and_restore(config, path, progress, new=resume is Resume.NO)
    return check_run(kind, path, config, resume, trusted=trusted)


def new_run(path: Path, config: RunConfig, kind: RunKind) -> RunDirectory:
    """Create the run directory at `path`. Raises StoreError where there is one already."""
    return RunDirectory.create(path, to_toml(config), _info(config, kind))


def next_free(folder: Path, name: str) -> Path:
    """Return `folder/name-NNN` with the first number that is not taken."""
    number = 1
    while (path := folder / f"{name}-{number:03d}").exists():
        number += 1
    return path


def _check_resumable(kind: RunKind, layout: RunLayout, config: RunConfig, resume: Resume) -> None:
    path, found = layout.root, kind_of(layout)
    instead = _INSTEAD.get(kind, _CHOOSE_NAME)
    if found not in (kind, RunKind.UNKNOWN):
        raise StoreError(
            f"expected {kind.words} or nothing in {path}, found {found.words}: {instead}"
            + (f", such as run.name={path.name}-{kind}" if kind not in _INSTEAD else "")
        )
    if resume is Resume.NO:
        raise StoreError(
            f"there is {found.words} in {path} already: resume it with --resume, or {instead}"
        )
    what = f"{kind.words.partition(' ')[2]} in {path}"
    before = _comparable(stored_config(layout.config_toml))
    check_unchanged(kind, f"the {what}", before, _comparable(config), instead)
    check_checkpoints(kind, layout, before, instead)
    if edited := edited_files(read_run_info(layout).input_digests, config):
        raise ConfigError(
            f"the {what} was started with other contents of {', '.join(edited)}: restore them, "
            f"or {instead}"
        )


def _comparable(config: RunConfig) -> RunConfig:
    """Return `config` with one spelling for every file: older runs stored relative paths."""
    return with_absolute_inputs(config, os.environ)


def _info(config: RunConfig, kind: RunKind) -> RunInfo:
    return RunInfo(
        run=config.run.name,
        kind=kind,
        seed=config.run.seed,
        created_at=time.time(),
        command=shlex.join(sys.argv),
        versions={name: version(name) for name in STACK},
        input_digests=input_digests(config, kind),
    )
