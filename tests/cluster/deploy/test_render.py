"""`trialrun render` from its command line, against the definitions of KubeRay where they are."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli.main import main
from tests.cluster.deploy.crd import faults, schema_of

DEFINITIONS = os.environ.get("TRIALRUN_KUBERAY_CRDS", "")
"""Folder with `ray.io_rayjobs.yaml` and `ray.io_rayclusters.yaml` of a KubeRay release."""
Render = Any


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Render:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["trialrun", "render", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("RayJob", ("qwen2.5-7b", "--as", "rayjob", "--namespace", "team")),
        ("RayCluster", ("qwen2.5-7b", "--as", "raycluster", "--max-workers", "12")),
        ("RayJob", ("qwen2.5-7b-lora", "--token-secret", "t", "--seccomp-profile", "p.json")),
        ("RayJob", ("qwen2.5-0.5b", "--pull-secret", "p", "--image", "host/x:1")),
        ("RayCluster", ("catalog", "--as", "raycluster", "rollouts.workers=3")),
    ],
)
def test_what_is_rendered_satisfies_the_definitions_of_kuberay(
    render: Render, kind: str, arguments: tuple[str, ...]
) -> None:
    if not DEFINITIONS:
        pytest.skip("TRIALRUN_KUBERAY_CRDS names no folder with KubeRay's definitions")
    code, out, err = render(*arguments)
    assert code == 0, err
    tree = list(yaml.safe_load_all(out))[-1]
    assert tree["kind"] == kind
    assert list(faults(tree, schema_of(Path(DEFINITIONS), kind, "v1"))) == []


def test_sizes_come_from_the_estimate_and_the_recipe_is_inside(render: Render) -> None:
    code, out, err = render("qwen2.5-7b", "run.name=Mine", "cluster.cpus_per_rank=2")
    assert code == 0, err
    _, recipe, job = out.split("---\n")
    assert 'path = "/srv/runs/models/Qwen2.5-7B-Instruct"' in recipe
    assert "name: mine" in job
    # 7.6 billion weights of two bytes, twice: 28.4 GiB, plus Ray's store and slack.
    assert "sizeLimit: 32Gi" in job
    assert "# Made by: trialrun render qwen2.5-7b run.name=Mine cluster.cpus_per_rank=2" in out


def test_a_recipe_that_does_not_fit_is_refused(render: Render) -> None:
    code, out, err = render("qwen2.5-7b", "--gpu-memory-gib", "16")
    assert (code, out) == (2, "")
    assert "the recipe does not fit, so its pods would fail" in " ".join(err.split())


def test_a_model_whose_size_is_not_known_is_refused(render: Render) -> None:
    code, out, err = render("qwen2.5-7b", "model.path=models/nobody-knows-it")
    assert (code, out) == (3, "")
    assert "--model-config" in err


WRONG: dict[str, Any] = {"spec": {"count": "2", "colour": "red", "extra": 1, "size": 2.5}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "count": {"type": "integer"},
                "colour": {"type": "string", "enum": ["blue"]},
                "size": {"x-kubernetes-int-or-string": True},
            },
        }
    },
}


def test_the_check_against_a_schema_finds_each_kind_of_fault() -> None:
    found = list(faults(WRONG, SCHEMA))
    assert found == [
        ".spec: name is missing",
        ".spec.count: expected integer, found '2'",
        ".spec.colour: expected one of ['blue'], found 'red'",
        ".spec.extra: no such field",
        ".spec.size: expected a number or text, found 2.5",
    ]
