"""The order of imports, who may import which vendor, names, sizes: read from the syntax tree.

`envs <- rollout <- learner <- cluster`: an import points left only, and inside of each package the
same holds for its floors. Each rule is a function from a module's path and tree to its violations,
and has a self-test that shows it a bad snippet.
"""

import ast
import sys
from collections.abc import Mapping, Set
from fnmatch import fnmatch

import pytest

from tests.project_tree import ORDER, Rule, broken, imported_names, project_modules, top, tree_of

FLOORS = {
    "envs": (
        "answers errors config endpoints late_imports messages process_watch seeds whole_numbers",
        "tools",
        "evidence",
        "tasks tool_schemas schema_repair",
        "argument_check",
        "example_arguments",
        "sandbox sources remote",
        "scoring",
        "server perturbation tasksets",
        "services",
        "gateway",
    ),
    "rollout": (
        "config observation phase_clock",
        "formats",
        "chat parser phase_tools prompts weights",
        "language engine",
        "episode",
        "episode_schema episode_difference engines identity trajectory transcript",
        "kept_turns",
        "aftermath episode_record",
        "in_progress",
        "runner store",
        "evaluation mirror",
    ),
    "learner": (
        "credit_columns credit_config pretrained signing",
        "config",
        "batch memory trainer_setup",
        "limits packed",
        "backends objective",
        "report",
        "outputs",
        "trainer",
    ),
    "cluster": (
        "metrics running",
        "config older_metrics progress",
        "dashboard lifecycle",
        "checks",
        "deploy fleet sinks",
        "jobs scheduling",
        "evaluation teachers",
        "replay training",
        "study",
        "cli",
    ),
}
"""Modules and sub-packages of each package, lowest floor first. One imports from lower floors, or
from itself.
"""

READS_ALONE = {
    "cluster/dashboard": (
        "cluster.dashboard",
        "rollout.store",
        # What the store holds, and the figures that `trialrun compare` and `trialrun plot` show:
        # pure modules, so that the dashboard computes no second version of them.
        "rollout.episode",
        "rollout.episode_schema",
        "rollout.evaluation",
        "rollout.transcript",
        "cluster.metrics",
        "cluster.older_metrics",
        "envs.errors",
        "envs.late_imports",
        "envs.seeds",
    )
}
"""What a sub-package may import of ours, where that is less than its floor allows."""
NOT_IN = {"cluster/dashboard": frozenset({"ray", "torch", "deepspeed", "vllm"})}
"""Packages of others that a sub-package may not import."""

ROLLOUT_CONTRACTS = frozenset(
    {
        "rollout.weights.layout",
        "rollout.config",
        "rollout.engine",
        "rollout.episode",
        "rollout.episode_schema",
        "rollout.chat.loading",
        "rollout.chat.shipped",
        "rollout.weights.files",
        "rollout.weights.manifest",
        "rollout.weights.model_folder",
    }
)
"""All that `learner` may import of `rollout`."""

_ROLLOUT = (
    "httpx jinja2 numpy pyarrow pydantic safetensors tokenizers torch transformers vllm xxhash"
)
_LEARNER = (
    "deepspeed gguf httpx2 huggingface_hub numpy peft pyarrow pydantic safetensors tokenizers "
    "torch transformers xxhash"
)
_ENVS = (
    "anyio docstring_parser fastapi httpx httpx2 jsonschema mcp mcp_types msgpack "
    "h11 prometheus_client pydantic referencing regex starlette uvicorn websockets yaml"
)
THIRD_PARTY = {
    "envs": frozenset(_ENVS.split()),
    "rollout": frozenset(_ROLLOUT.split()),
    "learner": frozenset(_LEARNER.split()),
}
"""What each package may import from outside; `cluster` may import everything."""

VENDORS = {
    "vllm": ("rollout/engines/vllm_*.py",),
    "deepspeed": ("learner/backends/deepspeed_backend.py",),
    "ray": ("cluster/fleet/*.py", "cluster/jobs/ray_jobs.py"),
    "fastapi": ("envs/server/*.py", "envs/gateway/*.py", "cluster/dashboard/*.py"),
    "uvicorn": ("envs/server/main.py", "envs/server/connection_limits.py", "cluster/*.py"),
    "h11": ("envs/server/connection_limits.py",),
    "mcp": ("envs/remote/mcp_*.py", "envs/gateway/mcp_server.py"),
    "mcp_types": ("envs/remote/mcp_*.py", "envs/gateway/mcp_server.py"),
    "httpx2": ("envs/remote/mcp_*.py", "learner/pretrained/hub.py"),
    "jsonschema": ("envs/argument_check.py",),
    "docstring_parser": ("envs/sources/python_docstrings.py",),
    "websockets": ("envs/remote/openenv_client.py", "envs/server/connection.py"),
    "peft": ("learner/backends/peft_adapters.py",),
    "tensorboard": ("cluster/sinks/tensorboard_sink.py",),
    "wandb": ("cluster/sinks/wandb_sink.py",),
    "mlflow": ("cluster/sinks/mlflow_sink.py",),
    "matplotlib": ("cluster/evaluation/plots.py",),
    "pyarrow.fs": ("rollout/mirror/place.py",),
    "torch": ("rollout/engines/vllm_*.py", "learner/*.py", "cluster/*.py"),
    "transformers": (
        "rollout/chat/*.py",
        "rollout/engines/vllm_*.py",
        "learner/*.py",
        "cluster/*.py",
    ),
}
"""The only files that may import a vendor's package, or a module of it."""


def wrong_arrows(path: str, tree: ast.Module) -> list[str]:
    """An import of a package that stands to the right, or a relative one."""
    package = path.split("/")[0]
    if package not in ORDER:
        return []
    right = ORDER[ORDER.index(package) + 1 :]
    names = imported_names(tree)
    return [
        "relative import: write it absolute" if name == "." else f"{package} imports {name}"
        for name in names
        if name == "." or top(name) in (*right, "tests", "requirements")
    ]


def floor_of(package: str, unit: str) -> int | None:
    """Return the number of the floor of a module or sub-package, None where it is on none."""
    for number, units in enumerate(FLOORS[package]):
        if unit in units.split():
            return number
    return None


def wrong_floors(path: str, tree: ast.Module) -> list[str]:
    """An import of the same package from a floor that is not lower, or a unit without a floor."""
    package, _, rest = path.removesuffix(".py").partition("/")
    if package not in ORDER or rest == "__init__":
        return []
    own = rest.partition("/")[0]
    floor = floor_of(package, own)
    if floor is None:
        return [f"{package}/{own} has no floor: give it one in FLOORS"]
    found = []
    for name in imported_names(tree):
        unit = name.split(".")[1] if name.startswith(f"{package}.") else own
        other = floor_of(package, unit)
        if unit != own and (other is None or other >= floor):
            found.append(f"{package}.{own} imports {name}, which is on no lower floor")
    return found


def beyond_its_reading(path: str, tree: ast.Module) -> list[str]:
    """An import by a sub-package that may import only a few modules."""
    folder = "/".join(path.split("/")[:2])
    if folder not in READS_ALONE:
        return []
    allowed = READS_ALONE[folder]
    return [
        f"{folder} imports {name}"
        for name in imported_names(tree)
        if top(name) in NOT_IN[folder]
        or (top(name) in ORDER and not any(f"{name}.".startswith(f"{a}.") for a in allowed))
    ]


def beyond_contracts(path: str, tree: ast.Module) -> list[str]:
    """An import of `rollout` by `learner` that is not one of the contract modules."""
    if not path.startswith("learner/"):
        return []
    return [
        f"learner imports {name}, which is no contract module"
        for name in imported_names(tree)
        if top(name) == "rollout"
        and name not in ROLLOUT_CONTRACTS
        and name.rpartition(".")[0] not in ROLLOUT_CONTRACTS
        and name != "rollout"
    ]


def misplaced_vendors(path: str, tree: ast.Module) -> list[str]:
    """A vendor outside its files, or a package that this layer may not use."""
    package = path.split("/")[0]
    if package not in ORDER:
        return []
    found = []
    names = set(imported_names(tree)) - {"."}
    for name in sorted({top(name) for name in names} | (names & VENDORS.keys())):
        homes = VENDORS.get(name)
        if homes is not None and not any(fnmatch(path, home) for home in homes):
            found.append(f"{name} may be imported only by {', '.join(homes)}")
        allowed = THIRD_PARTY.get(package)
        ours = name in ORDER or name in sys.stdlib_module_names or "." in name
        if allowed is not None and not ours and name not in allowed:
            found.append(f"{package}/ may not import {name}")
    return found


RULES: tuple[Rule, ...] = (
    wrong_arrows,
    wrong_floors,
    beyond_its_reading,
    beyond_contracts,
    misplaced_vendors,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    found = broken(rule)
    assert not found, "\n".join(found)


def test_no_module_imports_itself_through_others() -> None:
    modules = {
        path.removesuffix(".py").replace("/", "."): set(imported_names(tree_of(path)))
        for path in project_modules()
        if path.split("/")[0] in ORDER
    }
    arrows = {name: (found & modules.keys()) - {name} for name, found in modules.items()}
    assert circle_in(arrows) == []


def circle_in(arrows: Mapping[str, Set[str]]) -> list[str]:
    """Return the nodes that lie on circles, or lead only to such, ordered; none is a fine graph."""
    left = {name: set(found) for name, found in arrows.items()}
    while leaves := [name for name, found in left.items() if not found & left.keys()]:
        for name in leaves:
            del left[name]
    return sorted(left)


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (wrong_arrows, "envs/tools.py", "import rollout"),
        (wrong_arrows, "rollout/runner.py", "from learner.objective.losses import grpo"),
        (wrong_arrows, "rollout/runner.py", "def f():\n    import cluster.training.train"),
        (
            wrong_arrows,
            "learner/batch.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cluster import pool",
        ),
        (
            wrong_arrows,
            "envs/tools.py",
            "import importlib\nimportlib.import_module('cluster.x')",
        ),
        (wrong_arrows, "envs/tools.py", "from .tasks import Task"),
        (wrong_arrows, "cluster/training/train.py", "import tests.rollout"),
        (wrong_floors, "envs/tools.py", "from envs.sandbox.session import Sandbox"),
        (wrong_floors, "envs/sandbox/pool.py", "from envs.remote import mcp_client"),
        (wrong_floors, "cluster/fleet/pool.py", "def f():\n    import cluster.cli.main"),
        (wrong_floors, "envs/a_new_module.py", ""),
        (wrong_floors, "learner/batch.py", "import learner.nowhere"),
        (beyond_its_reading, "cluster/dashboard/app.py", "from learner.report import x"),
        (beyond_its_reading, "cluster/dashboard/app.py", "from rollout.runner import x"),
        (beyond_its_reading, "cluster/dashboard/app.py", "import ray"),
        (beyond_contracts, "learner/batch.py", "from rollout.runner import run"),
        (beyond_contracts, "learner/batch.py", "from rollout import runner"),
        (misplaced_vendors, "rollout/runner.py", "import vllm.config"),
        (misplaced_vendors, "cluster/training/train.py", "from vllm import AsyncLLM"),
        (misplaced_vendors, "learner/trainer.py", "def f():\n    import deepspeed"),
        (misplaced_vendors, "learner/trainer.py", "import ray"),
        (misplaced_vendors, "rollout/runner.py", "from torch import nn"),
        (misplaced_vendors, "envs/tasks.py", "import pyarrow"),
        (misplaced_vendors, "envs/tasks.py", "from fastapi import FastAPI"),
        (misplaced_vendors, "rollout/store/segments.py", "import pandas"),
        (misplaced_vendors, "rollout/mirror/upload.py", "from pyarrow import fs"),
    ],
)
def test_a_bad_module_is_caught(rule: Rule, path: str, source: str) -> None:
    assert rule(path, ast.parse(source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "cluster/fleet/learner_actor.py",
            "import ray\nfrom learner.trainer import Trainer\nimport envs.tools",
        ),
        ("learner/batch.py", "from rollout.episode import Episode\nimport torch, pyarrow"),
        ("learner/batch.py", "from rollout import episode"),
        ("cluster/dashboard/app.py", "from rollout.store.run_reader import RunReader"),
        ("envs/sandbox/pool.py", "from envs.sandbox.process import Child\nimport envs.tools"),
        ("rollout/engines/vllm_engine.py", "import vllm\nfrom torch import Tensor"),
        ("envs/server/main.py", "import asyncio\nfrom fastapi import FastAPI"),
        ("tests/envs/test_tools.py", "import ray, vllm, cluster.training.train"),
    ],
)
def test_a_good_module_is_not(path: str, source: str) -> None:
    assert [violation for rule in RULES for violation in rule(path, ast.parse(source))] == []
