"""Actors that outlive the driver of their run, and how the next driver finds them.

Ray ends the actors of a job with its driver, unless they are detached. Rollout workers and tool
servers of a training run on a cluster are detached, have names in which the run can be recognised,
and end by themselves once no driver has spoken to them for `cluster.keep_workers_s`.
"""

import hashlib
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.util import list_named_actors

logger = logging.getLogger("trialrun")

NAMESPACE = "trialrun"
"""Namespace of Ray in which the names are."""
_KEY_BYTES = 12
_PACKAGES = ("envs", "rollout", "learner", "cluster")
_ROOT = Path(__file__).parents[3]
"""Folder in which the packages are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasting:
    """How an actor lasts beyond the driver that made it."""

    key: str = ""
    """Stands for the run; another run, also a later one of the same name, has another key."""
    kind: str = ""
    """What it is, such as the group of a worker."""
    digest: str = ""
    """Of all that it is made from, see `digest_of`."""
    keep_s: float = 0.0
    """Seconds without a driver after which it ends; 0: Ray ends it with its driver."""

    def options(self, name: str = "") -> dict[str, Any]:
        """Return options of the Ray actor. Without a `name` it gets one that no other has."""
        if not self.keep_s:
            return {}
        unique = name or secrets.token_hex(4)
        return {
            "name": "/".join((self.key, self.kind, self.digest, unique)),
            "namespace": NAMESPACE,
            "lifetime": "detached",
        }


ENDS_WITH_DRIVER = Lasting()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """An actor of the run that was there before this driver."""

    kind: str
    digest: str
    actor: Any


def lasting_key(run: Path, created_at: float) -> str:
    """Return the key of the run in the folder `run` that was created at `created_at`."""
    text = f"{run.absolute()} {created_at!r}"
    return "run-" + hashlib.sha256(text.encode()).hexdigest()[: 2 * _KEY_BYTES]


def digest_of(*parts: object) -> str:
    """Return a digest of what an actor is made from: `parts`, and this version of the code."""
    text = "\n".join([_code_digest(), *map(repr, parts)])
    return hashlib.sha256(text.encode()).hexdigest()[: 2 * _KEY_BYTES]


def survivors_of(key: str) -> list[Survivor]:
    """Return the living actors of the run `key`."""
    found: list[Survivor] = []
    named: Any = list_named_actors(all_namespaces=True)
    for entry in named:
        name, namespace = entry["name"], entry["namespace"]
        if namespace != NAMESPACE or not name.startswith(f"{key}/"):
            continue
        try:
            actor = ray.get_actor(name, namespace)
        except ValueError:  # it has ended since
            continue
        _, kind, digest, _ = name.split("/")
        found.append(Survivor(kind=kind, digest=digest, actor=actor))
    return found


def end_others(survivors: list[Survivor], wanted: Mapping[str, str]) -> list[Survivor]:
    """End those that are made from something else than `wanted`, a digest by kind, says now;
    return the others.
    """
    fitting = [one for one in survivors if wanted.get(one.kind) == one.digest]
    others = [one for one in survivors if one not in fitting]
    for one in others:
        ray.kill(one.actor)
    if others:
        logger.warning(
            "ended %d processes that the driver before had left: the recipe or the code differs",
            len(others),
        )
    return fitting


@cache
def _code_digest() -> str:
    """Return a digest of the code of all four packages: a survivor runs the code that it began
    with.
    """
    found = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            found.update(f"{path.relative_to(_ROOT)}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()
