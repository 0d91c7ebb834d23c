"""The command that writes manifests."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli.arguments import (
    Assignments,
    RecipeArgument,
    RecipeCommand,
    SetOption,
    recipe_and_overrides,
)
from cluster.cli.command_line import stack
from cluster.config.run_config import load_config
from cluster.deploy.render_options import RenderOptions, name_for

app = typer.Typer()

Kind = Annotated[
    Literal["rayjob", "raycluster"],
    typer.Option("--as", help="A job with its own cluster, or a cluster that takes jobs."),
]
Name = Annotated[str, typer.Option(help="Name of the objects. Default: made from run.name.")]
Namespace = Annotated[str, typer.Option(help="Namespace of the objects.")]
Image = Annotated[
    str, typer.Option(help="Image of every pod. Default: the two that docker/ builds.")
]
PullSecret = Annotated[
    str, typer.Option("--pull-secret", help="Secret with which images are pulled.")
]
Volume = Annotated[
    str, typer.Option(help="Claim of the volume for runs, models and data; ReadWriteMany.")
]
TokenSecret = Annotated[
    str,
    typer.Option(
        "--token-secret", help="Secret with Ray's token as auth_token. Default: KubeRay makes one."
    ),
]
SeccompProfile = Annotated[
    str,
    typer.Option(
        "--seccomp-profile",
        help="Seccomp profile on the nodes, such as trialrun.json, for pods that run tools. "
        "Default: the container engine's.",
    ),
]
GpusPerPod = Annotated[
    int, typer.Option("--gpus-per-pod", min=1, help="Largest number of GPUs of one pod.")
]
MaxWorkers = Annotated[
    int,
    typer.Option(
        "--max-workers",
        min=0,
        help="Add pods for up to this number of rollout workers, as `trialrun scale` asks. "
        "Default: rollouts.workers.",
    ),
]
GpuMemory = Annotated[
    float, typer.Option("--gpu-memory-gib", min=1, help="Memory of one GPU, in GiB.")
]
ModelConfig = Annotated[
    Path | None,
    typer.Option("--model-config", help="config.json of a model that is not on this machine."),
]


@app.command(cls=RecipeCommand, epilog="Example: [bold]trialrun render qwen2.5-7b --as rayjob[/]")
def render(
    recipe: RecipeArgument,
    assignments: Assignments = None,
    kind: Kind = "rayjob",
    name: Name = "",
    namespace: Namespace = "",
    image: Image = "",
    pull_secret: PullSecret = "",
    volume: Volume = "trialrun-runs",
    token_secret: TokenSecret = "",
    seccomp_profile: SeccompProfile = "",
    gpus_per_pod: GpusPerPod = 8,
    max_workers: MaxWorkers = 0,
    gpu_memory_gib: GpuMemory = 80.0,
    model_config: ModelConfig = None,
    overrides: SetOption = None,
) -> None:
    """Print the recipe as objects of Kubernetes for KubeRay (YAML); starts nothing.

    Sizes of pods follow from the recipe and its estimate. Relative paths are on the volume.
    """
    # Paths are those in the pods, not of the folder in which this is typed.
    config = load_config(*recipe_and_overrides(recipe, assignments, overrides))
    config.check_trainable()
    options = RenderOptions(
        kind=kind,
        name=name or name_for(config.run.name),
        namespace=namespace,
        image=image,
        pull_secret=pull_secret,
        volume=volume,
        token_secret=token_secret,
        seccomp_profile=seccomp_profile,
        gpus_per_pod=gpus_per_pod,
        max_workers=max_workers,
    )
    command = ("trialrun", *(shlex.quote(word) for word in sys.argv[1:]))
    rendered = stack("deploy.render", slow=True).run_render
    sys.stdout.write(rendered(config, options, gpu_memory_gib, model_config, command))
