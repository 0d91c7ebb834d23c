"""The text of a manifest: what has to be there before it is applied, then its objects."""

from collections.abc import Mapping, Sequence

import yaml

from cluster.deploy.kuberay import USER, Cluster, Tree, objects
from cluster.deploy.pod_groups import GIB
from cluster.deploy.volume_paths import MOUNT


class _Dumper(yaml.SafeDumper):
    """Writes every value in full, and text of several lines as it is."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def manifest(cluster: Cluster, inputs: Mapping[str, str], command: Sequence[str]) -> str:
    """Return YAML of several documents.

    `inputs` are files that must be on the volume, by key; `command` is how the manifest was made.
    """
    documents = [_yaml(tree) for tree in objects(cluster)]
    return "---\n".join(["\n".join(_notes(cluster, inputs, command)) + "\n", *documents])


def _yaml(tree: Tree) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=100)


def _notes(cluster: Cluster, inputs: Mapping[str, str], command: Sequence[str]) -> list[str]:
    options = cluster.options
    lines = [f"# Made by: {' '.join(command)}", "# Before `kubectl apply`, the cluster needs:"]
    release = "1.6" if options.token_secret else "1.5.1"
    lines.append(f"#   the KubeRay operator, {release} or newer")
    lines.append(
        f"#   a claim {options.volume} that several pods can write to (ReadWriteMany), seen at "
        f"{MOUNT} by user {USER}"
    )
    lines += [f"#   on that volume, for {key}: {path}" for key, path in inputs.items()]
    if options.token_secret:
        lines.append(f"#   a secret {options.token_secret} with the key auth_token")
    if options.seccomp_profile:
        lines.append(
            f"#   on every node, below the kubelet's folder seccomp: {options.seccomp_profile}"
        )
    lines.append("# Pods:")
    for group in cluster.groups:
        pods = str(group.replicas) if group.most == group.least else f"{group.least}-{group.most}"
        contents = ", ".join(
            f"{count} {what}"
            for count, what in ((group.ranks, "ranks"), (group.workers, "workers"))
            if count
        )
        lines.append(
            f"#   {group.name}: {pods} x {group.cpus} CPUs, {group.gpus} GPUs, "
            f"{group.memory // GIB} GiB of memory, of which {group.shared_memory // GIB} GiB "
            f"/dev/shm{f' ({contents})' if contents else ''}"
        )
    return lines
