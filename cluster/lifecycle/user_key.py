"""The secret with which this user's run directories are signed (`rollout/store/run_signature.py`).

It is a file of the user, made when it is first needed: `$XDG_CONFIG_HOME/trialrun/key`, or the file
that TRIALRUN_KEY_FILE names. Each run is signed with a key of its own, derived from the secret and
the run's name. `trialrun submit` gives a job the key of its run, so that a job on a node with
another home signs like the user who submitted it.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from envs.errors import ConfigError

KEY_FILE = "TRIALRUN_KEY_FILE"
"""Environment variable: the file of the secret, such as one on a volume or of a mounted Secret."""
RUN_KEY = "TRIALRUN_RUN_KEY"
"""Environment variable of a submitted job: NAME=KEY, the key of its run."""
_CONTEXT = b"trialrun run key\n"
_BYTES = 32
_LARGEST_BYTES = 4096
_OTHERS = 0o077


class NoKeyError(Exception):
    """There is no secret and none can be made; the text says why and names the way out."""


def run_keys(name: str, environ: Mapping[str, str]) -> list[bytes]:
    """Return the keys of the run `name`: the first signs, each of them counts as the user's.

    It is empty where this user has no secret and none can be made. Raises ConfigError for a secret
    that is not one.
    """
    keys: list[bytes] = []
    given, found, key = environ.get(RUN_KEY, "").rpartition("=")
    if found and given == name:
        with suppress(ValueError):
            keys.append(bytes.fromhex(key))
    with suppress(NoKeyError):
        keys.append(derived_key(name, user_secret(environ)))
    return keys


def derived_key(name: str, secret: bytes) -> bytes:
    """Return the key of the run `name`."""
    return hmac.new(secret, _CONTEXT + name.encode(), hashlib.sha256).digest()


def user_secret(environ: Mapping[str, str]) -> bytes:
    """Return the user's secret, which is made if need be.

    Raises NoKeyError where that is impossible, ConfigError for a file that is no secret.
    """
    path = key_path(environ)
    try:
        if not path.exists():
            _make(path)
        return _read(path, own=not environ.get(KEY_FILE))
    except OSError as error:
        raise NoKeyError(_advice(path, error)) from error


def key_path(environ: Mapping[str, str]) -> Path:
    """Return where the secret is, or is to be. Raises NoKeyError for a user without a home."""
    if given := environ.get(KEY_FILE):
        return Path(given).expanduser().absolute()
    base = os.path.expanduser(environ.get("XDG_CONFIG_HOME") or "~/.config")
    if base.startswith("~"):
        raise NoKeyError(f"this user has no home folder for a key: set {KEY_FILE} to a file")
    return Path(base).absolute() / "trialrun" / "key"


def no_key_reason(environ: Mapping[str, str]) -> str:
    """Return why this user has no secret, and the way out; empty where there is one."""
    try:
        user_secret(environ)
    except NoKeyError as error:
        return str(error)
    return ""


def _advice(path: Path, error: OSError) -> str:
    return (
        f"this user has no key to sign runs with, and none can be made at {path} "
        f"({error.strerror or type(error).__name__}): set {KEY_FILE} to a file that lasts, in a "
        "folder where you can write, such as one on the volume of your runs"
    )


def _read(path: Path, *, own: bool) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if own and (found.st_uid != os.geteuid() or found.st_mode & _OTHERS):
            raise ConfigError(
                f"expected {path} to be readable by you alone, found mode "
                f"{found.st_mode & 0o777:o} of user {found.st_uid}: whoever has read it can sign "
                "runs as yours. Remove it; a new one is made"
            )
        content = file.read(_LARGEST_BYTES).strip()
    if len(content) < _BYTES:
        raise ConfigError(
            f"expected a secret of at least {_BYTES} bytes in {path}, found {len(content)}: write "
            "one with: openssl rand -hex 32"
        )
    return hashlib.sha256(content).digest()


def _make(path: Path) -> None:
    """Write a new secret to `path`, complete from the first moment, unless another process was
    faster.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(_BYTES) + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
