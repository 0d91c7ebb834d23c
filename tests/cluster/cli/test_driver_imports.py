"""What the commands import before they do anything: vLLM and DeepSpeed only where they run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def imports_of(module: str) -> Iterator[str]:
    """Yield what importing `module` imports, by its top-level statements."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def everything_behind(module: str) -> set[str]:
    """Return all modules of ours, and top names of others', that importing `module` runs."""
    found, left = {module}, [module]
    while left:
        for name in imports_of(left.pop()):
            ours = (ROOT / (name.replace(".", "/") + ".py")).exists()
            known = name if ours else name.partition(".")[0]
            if known not in found:
                found.add(known)
                left += [known] * ours
    return found


@pytest.mark.parametrize("start", ["cluster.training.train", "cluster.fleet.rollout_actor"])
def test_the_driver_starts_without_the_engine_and_the_trainer(start: str) -> None:
    behind = everything_behind(start)
    assert "ray" in behind and "rollout.runner" in behind, "the walk arrives somewhere"
    assert behind.isdisjoint({"vllm", "deepspeed"})


def test_the_walk_sees_them_where_they_are() -> None:
    assert "vllm" in everything_behind("cluster.fleet.vllm_factory")
    assert "deepspeed" in everything_behind("learner.backends.deepspeed_backend")


@pytest.mark.parametrize("start", ["cluster.cli.main", "cluster.cli.runs"])
def test_the_command_line_prepares_the_environment_before_ray_reads_it(start: str) -> None:
    """`stack` sets what Ray reads as it is imported, and imports it then."""
    behind = everything_behind(start)
    assert "cluster.cli.command_line" in behind and "ray" not in behind


@pytest.mark.parametrize(
    "start", ["cluster.evaluation.plots", "cluster.evaluation.compare", "cluster.cli.episode_views"]
)
def test_commands_that_read_a_run_need_neither_torch_nor_ray(start: str) -> None:
    behind = everything_behind(start)
    assert "rollout.store.run_reader" in behind
    assert behind.isdisjoint({"ray", "torch", "transformers", "vllm", "deepspeed"})
