"""Run directories of somebody else: what they name is neither started nor loaded unasked."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from cluster.cli.arguments import read_config
from cluster.cli.run_target import Target
from cluster.cli.steering import _stop_process
from cluster.config.run_config import RunConfig, RunKeys, load_config, to_toml
from cluster.jobs.submission import training
from cluster.lifecycle import recipe_risks
from cluster.lifecycle.opening import Resume, check_run, open_run
from cluster.lifecycle.trust import is_own, keys_of, reading_of, signing_of
from cluster.lifecycle.user_key import KEY_FILE, RUN_KEY, NoKeyError, run_keys, user_secret
from cluster.progress import QUIET, Progress
from envs.errors import ConfigError, DeadlineError, MissingError, StoreError
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_lock import take_lock
from rollout.store.run_signature import Origin, origin_of, read_signature

MCP = {"mcp": {"command": ["sh", "-c", "touch PWNED"]}}
TASK = {"id": "t", "question": "q", "answer": "1", "split": "heldout"}


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home" / "key"
    monkeypatch.setenv(KEY_FILE, str(path))
    return path


def become_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "other" / "key"))


def made(tmp_path: Path, *values: str, tools: dict[str, Any] | None = None) -> RunLayout:
    """Make a run whose tasks are in its own directory."""
    path = tmp_path / "runs" / "r"
    given = [f'run.dir="{path.parent}"', "run.name=r", "run.steps=3", *values]
    if tools is not None:
        tasks = tmp_path / "tasks.jsonl"
        tasks.write_text(json.dumps(TASK | {"tools": tools}) + "\n")
        given += ["env.name=file", f'env.path="{tasks}"']
    open_run(RunKind.TRAIN, path, load_config("catalog", given), Resume.NO, QUIET).close()
    return RunLayout(path)


def with_tasks_inside(layout: RunLayout, tools: dict[str, Any]) -> None:
    """Do as somebody who packs a run: the tasks lie in it, and its recipe names them there."""
    tasks = layout.root / "tasks.jsonl"
    tasks.write_text(json.dumps(TASK | {"tools": tools}) + "\n")
    old = load_config(str(layout.config_toml), ["env.name=file", f'env.path="{tasks}"'])
    layout.config_toml.write_text(to_toml(old))


def checkpoint(layout: RunLayout, step: int = 3) -> Path:
    folder = layout.checkpoints / f"{step:06d}"
    folder.mkdir(parents=True)
    (folder / "complete").write_text("{}")
    return folder


# The key


def test_a_key_is_made_once_for_its_user_alone(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    first = user_secret(environ)
    path = tmp_path / "config" / "trialrun" / "key"
    assert user_secret(environ) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert run_keys("a", environ) != run_keys("b", environ)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="readable by you alone, found mode 644"):
        user_secret(environ)
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="secret of at least 32 bytes"):
        user_secret(environ)


def test_without_a_home_the_way_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "file")}
    with pytest.raises(NoKeyError, match=f"set {KEY_FILE} to a file"):
        user_secret(environ)
    assert run_keys("a", environ) == []
    mounted = tmp_path / "secret"
    mounted.write_text("0" * 64)
    assert run_keys("a", environ | {KEY_FILE: str(mounted)})


def test_a_run_without_a_key_says_so_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "file" / "key"))
    config = load_config("catalog", [f'run.dir="{tmp_path}"', "run.name=r"])
    with open_run(RunKind.TRAIN, config.path, config, Resume.NO, Progress()) as run:
        run.record_metrics(1, {"loss": 1.0})
    assert KEY_FILE in capsys.readouterr().err
    assert not RunLayout(config.path).signature.exists()
    assert check_run(RunKind.TRAIN, config.path, config, Resume.REQUIRED).resumes


def test_a_submitted_job_signs_as_who_submitted_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("catalog", [f'run.dir="{tmp_path}"', "run.name=r"])
    mine = run_keys("r", os.environ)
    variables: Any = training(config, ["trialrun"], {}, mine).runtime_env["env_vars"]
    become_somebody_else(monkeypatch, tmp_path)  # the job's node has another home
    monkeypatch.setenv(RUN_KEY, variables[RUN_KEY])
    open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET).close()
    layout = RunLayout(config.path)
    assert origin_of(layout, mine) is Origin.OWN
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "third" / "key"))
    assert is_own(layout)  # a job on a third node, with the same variable


# Recipes


def test_ones_own_recipe_may_do_anything(tmp_path: Path) -> None:
    layout = made(tmp_path, tools=MCP)
    config = read_config(str(layout.config_toml), None, None)
    assert config.env.name == "file"


@pytest.mark.parametrize("how", ["unsigned", "another key", "odd letters", "changed"])
def test_a_recipe_of_somebody_else_may_start_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    layout = made(tmp_path)
    with_tasks_inside(layout, MCP)
    if how == "unsigned":
        layout.signature.unlink()
    if how == "another key":
        become_somebody_else(monkeypatch, tmp_path)
    if how == "odd letters":
        signature = json.loads(layout.signature.read_text())
        layout.signature.write_text(json.dumps({**signature, "mac": "é" * 64}))
    recipe = str(layout.config_toml)
    with pytest.raises(ConfigError, match=r"starts a process.*--trust-run"):
        read_config(recipe, None, None)
    assert read_config(recipe, None, None, trusted=True).env.name == "file"
    outside = tmp_path / "mine.toml"
    outside.write_bytes(layout.config_toml.read_bytes())
    assert read_config(str(outside), None, None).env.name == "file"
    assert read_config(recipe, ["env.name=catalog"], None).env.name == "catalog"


def test_tasks_in_a_signed_run_that_were_edited_are_looked_at(tmp_path: Path) -> None:
    layout = made(tmp_path)
    tasks = layout.root / "tasks.jsonl"
    tasks.write_text(json.dumps(TASK | {"tools": MCP}) + "\n")
    values = [f'run.dir="{tmp_path / "runs"}"', "run.name=s", f'env.path="{tasks}"']
    config = load_config("file", values)
    open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET).close()
    inner = RunLayout(config.path)
    assert read_config(str(inner.config_toml), None, None)  # outside of the run: the user's own
    other = inner.root / "tasks.jsonl"
    other.write_text(json.dumps(TASK | {"tools": MCP}) + "\n")
    values[2] = f'env.path="{other}"'
    again = load_config("file", values)
    open_run(RunKind.TRAIN, again.path, again, Resume.IF_PRESENT, QUIET).close()
    assert read_config(str(inner.config_toml), None, None)
    other.write_text(json.dumps(TASK | {"tools": {"mcp": {"command": ["evil"]}}}) + "\n")
    with pytest.raises(ConfigError, match="starts a process"):
        read_config(str(inner.config_toml), None, None)


RISKS = {
    "env.name": ['env.name="some.module:World"'],
    "env.path": ["env.name=file", 'env.path="/etc/passwd"'],
    "env.trusted_scorers": ["env.name=file", "env.trusted_scorers=true"],
    "tools.isolation.unsafe": ['tools.isolation.required="none"', "tools.isolation.unsafe=true"],
    "tools.isolation.packages": ['tools.isolation.packages=["antigravity"]'],
    "tools.record_dir": ["tools.record=true", 'tools.record_dir="/srv"'],
    "learner.loss": ['learner.loss="antigravity:loss"'],
    "learner.tis_mode": ['learner.tis_mode="antigravity:mask"', "learner.ratio_reference=proximal"],
    "judge.base_url": ['judge.model="m"', "judge.key_variable=AWS_SECRET_ACCESS_KEY"],
    "simulated_user.base_url": ['simulated_user.model="m"'],
    "collect.endpoint.base_url": ["collect.source=endpoint", 'collect.endpoint.model="m"'],
    "collect.turns": ["collect.source=turns", 'collect.turns="/etc/passwd"'],
    "mirror.url": ['mirror.url="s3://bucket/runs"'],
    "metrics.sinks": [
        'metrics.sinks=["mlflow"]',
        'metrics.mlflow.tracking_uri="http://evil.example"',
    ],
    "model.chat_template": ['model.chat_template="/etc/hostname.jinja"'],
    "run.dir": ['run.dir="/srv/other"'],
    "run.models_dir": ['run.models_dir="/srv/models"'],
    "cluster.shm_dir": ['cluster.shm_dir="/srv"'],
}


@pytest.mark.parametrize("key", RISKS)
def test_every_way_out_of_the_directory_is_refused_by_its_key(key: str, tmp_path: Path) -> None:
    layout = made(tmp_path)
    layout.signature.unlink()
    config = load_config("catalog", [f'run.dir="{tmp_path / "runs"}"', "run.name=r", *RISKS[key]])
    found = recipe_risks.risks_of(config, layout.root, Path("models"))
    assert key in {risk.key for risk in found}, found
    layout.config_toml.write_text(to_toml(config))
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        read_config(str(layout.config_toml), None, None)


@pytest.mark.parametrize(
    "tools",
    [
        {"mcp": {"url": "http://evil.example/mcp"}},
        {"openenv": {"url": "http://evil.example"}},
        {"openapi": "api.json", "base_url": "http://evil.example"},
        {"python": "../../secret.py"},
        {"functions": "tools.py", "files": ["/etc"]},
        {"openapi": "api.json", "fixtures": "../../state.json"},
    ],
)
def test_tools_of_tasks_in_the_directory_are_looked_at(
    tmp_path: Path, tools: dict[str, Any]
) -> None:
    layout = made(tmp_path)
    with_tasks_inside(layout, tools)
    with pytest.raises(ConfigError, match=r"env\.path = .*(contacts a host|leads out)"):
        read_config(str(layout.config_toml), None, None)


def test_harmless_runs_of_older_versions_need_no_flag(tmp_path: Path) -> None:
    layout = made(tmp_path)
    layout.signature.unlink()
    folder = {"model.path": str(tmp_path)}
    (tmp_path / "config.json").write_text("{}")
    layout.config_toml.write_text(
        to_toml(load_config(str(layout.config_toml), [f"{k}={v}" for k, v in folder.items()]))
    )
    assert read_config(str(layout.config_toml), None, None).run.name == "r"


HARMLESS = {
    *("run.name", "model.path", "model.tool_format", "model.lora.target_modules"),
    *("collect.filter.balance", "cluster.tool_node_resource", "eval.by", "env.options"),
    *("rollouts.groups.accelerator_type", "rollouts.groups.resources", "rollouts.groups.labels"),
    "model.template_options",
}
GUARDED_BY = {
    "judge": "judge.base_url",
    "simulated_user": "simulated_user.base_url",
    "collect.endpoint": "collect.endpoint.base_url",
    "mirror": "mirror.url",
    "metrics": "metrics.sinks",
    "env.scorers": "env.path",
}


def test_every_key_with_a_text_is_known_to_be_harmless_or_looked_at() -> None:
    keys = {
        key
        for key in _texts(RunKeys)
        if not any(key.startswith(f"{section}.") for section in GUARDED_BY)
    }
    assert keys - HARMLESS - RISKS.keys() == set(), "add it to recipe_risks, or say it is harmless"
    assert set(GUARDED_BY.values()) <= RISKS.keys()


def _texts(model: type[BaseModel], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        inner = _models(field.annotation)
        for each in inner:
            found |= _texts(each, f"{prefix}{name}.")
        if not inner and (
            "str" in str(field.annotation) and "Literal" not in str(field.annotation)
        ):
            found.add(prefix + name)
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for inner in get_args(annotation) for model in _models(inner)]


# Checkpoints, and the rest of the directory


def test_checkpoints_of_somebody_else_are_not_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = made(tmp_path)
    checkpoint(layout)
    config = load_config(str(layout.config_toml))
    become_somebody_else(monkeypatch, tmp_path)
    with pytest.raises(StoreError, match=r"another key than yours.*--trust-run"):
        check_run(RunKind.TRAIN, layout.root, config, Resume.REQUIRED)
    with pytest.raises(StoreError, match="another key than yours"):
        reading_of(layout, layout.config_toml, config, layout.checkpoints, trusted=False)
    opening = check_run(RunKind.TRAIN, layout.root, config, Resume.REQUIRED, trusted=True)
    opening.open(QUIET).close()
    assert is_own(layout)  # from now on
    assert signing_of(layout).accepted
    assert check_run(RunKind.TRAIN, layout.root, config, Resume.REQUIRED).resumes


def test_a_run_of_an_older_version_is_signed_when_it_is_resumed(tmp_path: Path) -> None:
    layout = made(tmp_path)
    checkpoint(layout)
    layout.signature.unlink()
    config = load_config(str(layout.config_toml))
    opening = check_run(RunKind.TRAIN, layout.root, config, Resume.REQUIRED)
    opening.open(QUIET).close()
    assert is_own(layout)
    assert len(signing_of(layout).accepted) == 1
    checkpoint(layout, 4)  # not there then, and not signed
    check_run(RunKind.TRAIN, layout.root, config, Resume.REQUIRED).open(QUIET).close()
    assert len(signing_of(layout).accepted) == 1


def test_a_foreign_run_that_is_resumed_with_ones_own_recipe_launders_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = made(tmp_path)
    with open_run(
        RunKind.TRAIN, layout.root, load_config(str(layout.config_toml)), Resume.IF_PRESENT, QUIET
    ) as run:
        run.record_metrics(1, {"loss": 1.0})
    config = load_config(str(layout.config_toml))
    evil = layout.config_until(1)
    evil.write_text(to_toml(load_config(str(layout.config_toml), ['learner.loss="evil:loss"'])))
    become_somebody_else(monkeypatch, tmp_path)
    check_run(RunKind.TRAIN, layout.root, config, Resume.REQUIRED).open(QUIET).close()
    signature = read_signature(layout, keys_of(layout))
    assert signature is not None
    assert "config.toml" in signature.files
    assert evil.name not in signature.files
    with pytest.raises(ConfigError, match=r"learner\.loss"):
        reading_of(layout, evil, load_config(str(evil)), None, trusted=False)


def test_the_cluster_and_the_process_that_a_foreign_run_names_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = made(tmp_path)
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    writer = json.loads(layout.writer.read_text())
    writer |= {"pid": bystander.pid, "submission_id": "raysubmit_1", "ray_address": "evil:6379"}
    layout.writer.write_text(json.dumps(writer))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    target = Target(layout, "", (None, None))
    assert target.job(needed=False) is None
    with pytest.raises(MissingError, match=r"no signature of yours.*--address"):
        target.job(needed=True)
    monkeypatch.setattr("cluster.cli.steering._ANSWER_S", 0.2)
    with RunHeld(layout), pytest.raises(DeadlineError, match="end process"):
        _stop_process(layout)
    assert bystander.poll() is None
    bystander.communicate()


class RunHeld:
    """Something that holds the lock of a run, so that a job seems to write to it."""

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout

    def __enter__(self) -> None:
        self._lock = take_lock(self._layout)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_the_seal_is_of_what_config_toml_says(tmp_path: Path) -> None:
    layout = made(tmp_path)
    assert tomllib.loads(layout.config_toml.read_text())["run"]["name"] == "r"
    assert is_own(layout)
    for path in (layout.config_toml, layout.run_json):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        assert not is_own(layout)
        path.write_bytes(before)
    assert is_own(layout)
    assert isinstance(load_config(str(layout.config_toml)), RunConfig)
