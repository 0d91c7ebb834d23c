"""What a manifest needs to know beside the recipe."""

import re
from dataclasses import dataclass
from typing import Literal

from envs.errors import ConfigError

Kind = Literal["rayjob", "raycluster"]

_LONGEST_NAME = 40
"""KubeRay puts the name and a suffix into labels, which hold 63 characters."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """Place and size of a cluster on Kubernetes."""

    kind: Kind
    name: str
    """Of the objects; a label of DNS (RFC 1123)."""
    namespace: str = ""
    image: str = ""
    """For every pod; empty means the two images that `docker/` builds."""
    pull_secret: str = ""
    volume: str = "trialrun-runs"
    """Claim of a volume that several pods can write to."""
    token_secret: str = ""
    """Secret with Ray's token under the key `auth_token`; empty lets the operator make one."""
    seccomp_profile: str = ""
    """File below the kubelet's folder of profiles, for pods that run tools; empty means the
    container engine's own profile."""
    gpus_per_pod: int = 8
    """Largest number of GPUs of one pod, usually those of a node."""
    max_workers: int = 0
    """Rollout workers up to which the cluster grows; 0 means it does not grow."""

    def __post_init__(self) -> None:
        for flag, name in (
            ("--name", self.name),
            ("--namespace", self.namespace),
            ("--volume", self.volume),
            ("--token-secret", self.token_secret),
            ("--pull-secret", self.pull_secret),
        ):
            check_name(flag, name)


def check_name(flag: str, name: str) -> None:
    """Raise ConfigError where Kubernetes would refuse `name`; an empty one is not given."""
    longest = _LONGEST_NAME if flag == "--name" else 63
    if name and (not _NAME.fullmatch(name) or len(name) > longest):
        raise ConfigError(
            f"expected {flag} of small letters, digits and '-', at most {longest} characters, "
            f"with a letter or digit at both ends, found {name!r}"
        )


def name_for(run_name: str) -> str:
    """Return the name of a run as Kubernetes allows it. Raises ConfigError if none is left."""
    name = re.sub(r"[^a-z0-9]+", "-", run_name.lower())[:_LONGEST_NAME].strip("-")
    if not name:
        raise ConfigError(
            f"expected a letter or digit in run.name, found {run_name!r}: give --name NAME"
        )
    return name
