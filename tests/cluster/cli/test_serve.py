"""`trialrun serve`: refusals on the command line, and a server with a token."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from cluster.cli.main import main
from cluster.cli.serve import tasks_to_serve
from envs.errors import ConfigError
from envs.tasks import Split
from envs.tasksets.catalog.environment import CatalogEnvironment
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.environment import FileEnvironment
from envs.tasksets.outside import Outside

MAIN = [sys.executable, "-c", "from cluster.cli.main import main; main()"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "expected --token with --host 0.0.0.0"),
        (["--host", "0.0.0.0", "--no-token"], "expected a token with --host 0.0.0.0"),
        (["--token", "a", "--no-token"], "expected one of --token"),
        (["toolhop", "--tasks", "100000"], "task"),
        (["nothing"], "nothing"),
        (["--set", "tools.isolation.required=none"], "unsafe"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["trialrun", "serve", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (1, 2, 3)
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err
    assert "ready" not in out


SPLITS = ("train", "heldout", "train")


@pytest.fixture
def few(tmp_path: Path) -> FileEnvironment:
    """Three tasks, fewer than any default."""
    (tmp_path / "shop.py").write_text('def f(x: int) -> int:\n    """F."""\n    return x\n')
    rows = (
        {
            "id": f"{i}",
            "question": "?",
            "answer": i,
            "split": split,
            "tools": {"functions": "shop.py"},
        }
        for i, split in enumerate(SPLITS)
    )
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    nowhere = Outside(list_tools=lambda place: pytest.fail())
    return FileEnvironment(FileEnvConfig(path=str(tmp_path)), nowhere)


def test_every_task_of_a_file_is_served_whatever_its_split(few: FileEnvironment) -> None:
    assert [task.id for task in tasks_to_serve(few, 0, None, None)] == [
        "file-0",
        "file-1",
        "file-2",
    ]
    assert [task.id for task in tasks_to_serve(few, 0, None, 2)] == ["file-0", "file-1"]
    assert {task.id for task in tasks_to_serve(few, 0, "train", None)} == {"file-0", "file-2"}
    with pytest.raises(ConfigError, match="expected 4 tasks in file, found 3"):
        tasks_to_serve(few, 0, None, 4)
    with pytest.raises(ConfigError, match="expected 3 tasks in the train split"):
        tasks_to_serve(few, 0, "train", 3)
    with pytest.raises(ConfigError, match="expected tasks in the validation split"):
        tasks_to_serve(few, 0, "validation", None)


@pytest.mark.parametrize(
    ("split", "count", "found"), [(None, None, 12), ("heldout", None, 12), (None, 3, 3)]
)
def test_of_generated_tasks_some_are_served(
    split: Split | None, count: int | None, found: int
) -> None:
    tasks = tasks_to_serve(CatalogEnvironment(), 0, split, count)
    assert len(tasks) == found
    assert {task.split for task in tasks} == {split or "train"}


def test_tools_outside_of_the_sandbox_need_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {
        "openapi": "3.0.0",
        "info": {"title": "t", "version": "1"},
        "paths": {"/x": {"get": {"operationId": "x", "responses": {"200": {"description": ""}}}}},
    }
    (tmp_path / "api.json").write_text(json.dumps(document))
    tools = {
        "openapi": "api.json",
        "base_url": "http://127.0.0.1:9",
        "allowed_hosts": ["127.0.0.1:9"],
    }
    row = {"id": "a", "question": "?", "answer": 1, "tools": tools}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    words = ["trialrun", "serve", "file", f"env.path={tmp_path}", "--no-token"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "expected a token, found --no-token: task file-a has tools of http" in message


@pytest.mark.real
@pytest.mark.parametrize("option", ["", "--no-token"])
async def test_the_printed_commands_work_as_they_are(option: str) -> None:
    command = [*MAIN, "serve", "catalog", "--tasks", "2", *filter(None, [option])]
    environ = {key: text for key, text in os.environ.items() if key != "TRIALRUN_TOKEN"}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            lines: list[str] = []
            url = await asyncio.wait_for(asyncio.to_thread(_ready, process, lines), 90)
            [curl] = [line.strip() for line in lines if line.strip().startswith("curl")]
            asked = await asyncio.to_thread(
                subprocess.run, ["sh", "-c", f"{curl} --silent"], capture_output=True, timeout=30
            )
            assert json.loads(asked.stdout)["status"] == "healthy"
            assert httpx.get(f"{url}/health").status_code == (200 if option else 401)
            evil = httpx.get(f"{url}/health", headers={"host": "evil.example"})
            assert evil.status_code == 421
            seen = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert not option or "Bearer" not in curl
            assert option or curl.partition("Bearer ")[2].partition("'")[0] not in seen
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 0


@pytest.mark.real
async def test_perturbed_tools_are_served_and_a_token_guards_every_protocol(tmp_path: Path) -> None:
    environ = os.environ | {"TRIALRUN_TOKEN": "secret"}
    command = [*MAIN, "serve", "catalog", "--tasks", "2", "--set", "env.perturbation=union"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            url = await asyncio.wait_for(asyncio.to_thread(_ready, process), 90)
            async with asyncio.timeout(30):
                await _try_every_protocol(url)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 0


def _ready(process: subprocess.Popen[bytes], lines: list[str] | None = None) -> str:
    """Wait for the last line of the welcome; return the address, and add the `lines` before it."""
    assert process.stdout is not None
    for line in process.stdout:
        if lines is not None:
            lines.append(line.decode())
        if line.startswith(b"ready "):
            return line.split()[1].decode()
    raise AssertionError("the server ended")


async def _try_every_protocol(url: str) -> None:
    for path in ("/health", "/schema", "/metadata", "/mcp"):
        assert httpx.get(f"{url}{path}").status_code == 401, path
    socket_url = url.replace("http", "ws", 1) + "/ws"
    with pytest.raises(InvalidStatus, match="401"):
        await connect(socket_url)
    bearer = {"authorization": "Bearer secret"}
    assert httpx.get(f"{url}/health", headers=bearer).json()["status"] == "healthy"
    async with connect(socket_url, additional_headers=bearer) as socket:
        await socket.send(json.dumps({"type": "reset", "data": {"seed": 1}}))
        task = json.loads(await socket.recv())["data"]["observation"]
        tool = task["available_tools"][0]["name"]
        action = {"type": "call_tool", "tool_name": tool, "arguments": {}}
        await socket.send(json.dumps({"type": "step", "data": action}))
        observation = json.loads(await socket.recv())["data"]["observation"]
        assert observation["tool_name"] == tool
        assert observation["result"] or observation["error"]["message"]
