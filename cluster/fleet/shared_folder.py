"""Whether the learner's ranks see the files that the driver writes, on whatever nodes they are.

Ranks write checkpoints and the model to the run directory by its path. Where that path is another
folder on their node, a run would train for hours and lose everything.
"""

import hashlib
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.errors import ConfigError

PATIENCE_S = 10.0
"""How long a file may take to appear on another node, in seconds."""
_POLL_S = 0.1
_MODEL_FILE = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A file that the driver wrote, and a model that it has; sent to every rank."""

    file: str
    text: str
    model: str
    """Folder of the model."""
    model_digest: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rank found."""

    host: str
    fault: str
    """What is wrong there; empty if nothing is."""


def ask(run: Path, model: Path) -> Question:
    """Write a file to the run directory `run`, and return the question whether ranks see it."""
    file, text = run / f".seen-{secrets.token_hex(8)}", secrets.token_hex(16)
    file.write_text(text)
    return Question(file=str(file), text=text, model=str(model), model_digest=_digest(model))


def answer(question: Question, rank: int) -> Answer:
    """Look for the file of `question`, and write one beside it; called on the rank's node."""
    host, file = socket.gethostname(), Path(question.file)
    if not _appears(file, question.text):
        return Answer(host, f"does not see what the driver writes to {file.parent}")
    try:
        _reply(question, rank).write_text(question.text)
    except OSError as error:
        return Answer(host, f"cannot write to {file.parent} ({error.strerror})")
    if _digest(Path(question.model)) != question.model_digest:
        return Answer(host, f"does not have the driver's model in {question.model}")
    return Answer(host, "")


def check_answers(question: Question, answers: Sequence[Answer]) -> None:
    """Raise ConfigError unless every rank, in rank order, shares the run directory and model."""
    run = Path(question.file).parent
    faults = [f"rank {i} on {a.host} {a.fault}" for i, a in enumerate(answers) if a.fault]
    if not faults:
        faults = [
            f"rank {rank} on {found.host} writes to another {run}"
            for rank, found in enumerate(answers)
            if not _appears(_reply(question, rank), question.text)
        ]
    if faults:
        raise ConfigError(
            f"expected run directory and model at the same paths on every node, found: "
            f"{'; '.join(faults)}. Add run.dir=/SHARED/runs run.models_dir=/SHARED/models (and "
            "model.path, if you set it) to the command, where /SHARED is a folder that all nodes "
            "mount, such as NFS"
        )


def withdraw(question: Question) -> None:
    """Remove the files of `question` and its answers."""
    file = Path(question.file)
    for found in file.parent.glob(f"{file.name}*"):
        found.unlink(missing_ok=True)


def _reply(question: Question, rank: int) -> Path:
    return Path(f"{question.file}.{rank}")


def _appears(file: Path, text: str) -> bool:
    """Wait until `file` contains `text`, at most PATIENCE_S; return whether it does."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            if file.read_text() == text:
                return True
        except (OSError, UnicodeDecodeError):
            pass
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)


def _digest(model: Path) -> str:
    """Return a hash of the file that describes a model; empty where there is none."""
    try:
        return hashlib.sha256((model / _MODEL_FILE).read_bytes()).hexdigest()
    except OSError:
        return ""
