"""Refusals that need no import of the stack, and what a folder is that is no run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli.path_checks import (
    BUILT_MODELS,
    check_model,
    check_run_folder,
    check_sources,
    check_tasks,
    run_at,
)
from cluster.config.run_config import load_config
from envs.errors import MissingError, StoreError
from rollout.store.run_layout import RunLayout

_SCRIPT = """
import json, sys
from cluster.cli.main import main
heavy = {"ray", "torch", "vllm", "deepspeed", "transformers", "matplotlib"}
found = {}
for command in json.load(sys.stdin):
    sys.argv = ["trialrun", *command]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    found[" ".join(command)] = [code, sorted(heavy & sys.modules.keys())]
json.dump(found, open("found.json", "w"))
"""
REFUSED = {
    "train nope": 3,
    "train catalog model.path=no/such/model": 3,
    "train catalog --resume": 3,
    "train catalog --steps 3": 2,
    "train catalog learner.learning_rate=1": 2,
    "train there": 3,
    "train catalog run.dir=. run.name=there": 1,
    "sft catalog --from nowhere": 3,
    "sft catalog run.dir=. run.name=there": 1,
    "collect --out there": 1,
    "eval file env.path=nowhere": 3,
    "eval catalog model.path=there": 3,
    "study model.path=no/such/model": 3,
    "serve file env.path=nowhere": 3,
    "episodes nowhere": 3,
    "episodes replay nowhere": 3,
    "plot nowhere": 3,
    "replay-step nowhere 1": 3,
    "scale no/where 1": 3,
    "status no/where": 3,
    "stop no/where": 3,
    "logs no/where": 3,
    "logs there": 3,
    "stop there": 3,
    "submit nope": 3,
    "submit catalog model.path=no/such/model": 3,
}
LIGHT = (
    "--help",
    "train --help",
    "keys lr",
    "train catalog --dry-run",
    "--version",
    "runs",
    "status there",
)


def a_run_with_a_step(folder: Path) -> None:
    layout = RunLayout(folder)
    layout.metrics.parent.mkdir(parents=True)
    layout.run_json.write_text("{}")
    layout.metrics.write_text('{"step": 1}\n')


def test_refusals_and_light_commands_import_none_of_the_stack(tmp_path: Path) -> None:
    a_run_with_a_step(tmp_path / "there")
    commands = [text.split() for text in (*LIGHT, *REFUSED)]
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps(commands),
        env={"PYTHONPATH": str(root), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name: code for name, (code, _) in found.items() if name in REFUSED} == REFUSED
    assert {name: heavy for name, (_, heavy) in found.items() if heavy} == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "there"]


def test_an_id_of_the_hub_is_left_to_the_hub() -> None:
    check_model("Qwen/Qwen2.5-0.5B")


def test_a_path_is_not_taken_for_an_id_of_the_hub(tmp_path: Path) -> None:
    for path in ("no/such/model", str(tmp_path / "gone"), "./model", "model"):
        with pytest.raises(MissingError, match="found nothing at") as refusal:
            check_model(path)
        assert "hf download" not in str(refusal.value)
    with pytest.raises(MissingError, match=r"found no config\.json"):
        check_model(str(tmp_path))


def test_models_that_exist_or_are_built_here_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for model in (*BUILT_MODELS, str(tmp_path)):
        check_model(model)


def test_missing_tasks(tmp_path: Path) -> None:
    check_tasks(load_config("file"))
    check_tasks(load_config("file", [f"env.path={tmp_path}"]))
    with pytest.raises(MissingError, match="expected tasks at env"):
        check_tasks(load_config("file", [f"env.path={tmp_path}/none.jsonl"]))


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    for name in ("train", "evals/first"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    with pytest.raises(MissingError) as refusal:
        run_at(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path} is not a run but contains runs: name one of {tmp_path / 'evals' / 'first'}, "
        f"{tmp_path / 'train'}"
    )
    assert run_at(tmp_path / "train").root == tmp_path / "train"


def test_an_existing_run_is_kept_unless_it_is_resumed(tmp_path: Path) -> None:
    a_run_with_a_step(tmp_path)
    check_run_folder(tmp_path / "new", resume=False, elsewhere="")
    check_run_folder(tmp_path, resume=True, elsewhere="")
    with pytest.raises(StoreError, match=r"resume it with --resume, or choose another run\.name"):
        check_run_folder(tmp_path, resume=False, elsewhere="choose another run.name")


def test_what_a_failed_start_left_blocks_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    check_run_folder(tmp_path, resume=False, elsewhere="choose another run.name")


def test_sources_may_have_weights(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    check_sources([str(tmp_path), f"{tmp_path}=0.5"])
    with pytest.raises(MissingError, match="nowhere"):
        check_sources([str(tmp_path), "nowhere=2"])
