"""Models by their id on the Hugging Face Hub; a small server stands for the Hub."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import constants

from envs.errors import MissingError
from learner.pretrained.hub import HUB_ID, download
from learner.pretrained.resolve import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves two models: `org/good`, and `org/data`, which is no language model."""

    files: ClassVar[dict[str, bytes]] = {
        "config.json": b'{"model_type": "none"}',
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"the same weights again",
    }
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        model = next((name for name in ("org/good", "org/data") if name in path), None)
        names = [name for name in self.files if model == "org/good" or "config" not in name]
        if model is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            content = b"{}"
        elif "/resolve/" in path:
            self.send_response(200)
            content = self.files[path.rpartition("/")[2]]
            self.send_header("ETag", f'"{path.rpartition("/")[2]}"')
            self.send_header("X-Repo-Commit", COMMIT)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            found: object = {
                "id": model,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names],
            }
            if "/tree/" in path:
                found = [
                    {"type": "file", "path": n, "size": len(self.files[n]), "oid": n} for n in names
                ]
            content = json.dumps(found).encode()
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of the Hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_downloaded_once_and_without_its_other_formats(tmp_path: Path, hub: str) -> None:
    found = download("org/good", tmp_path, hub)
    assert found == tmp_path / "org--good"
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["org--good"]
    Hub.asked.clear()
    assert download("org/good", tmp_path, hub) == found
    assert Hub.asked == []


@pytest.mark.parametrize("model", ["org/none", "org/data"])
def test_what_the_hub_does_not_have_is_one_line(tmp_path: Path, hub: str, model: str) -> None:
    with pytest.raises(MissingError) as refusal:
        download(model, tmp_path, hub)
    assert model in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / model.replace("/", "--")).exists()


def test_where_the_hub_is_out_of_reach_the_command_to_fetch_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as refusal:
        download("org/good", tmp_path, "http://127.0.0.1:9")
    assert f"`hf download org/good --local-dir {tmp_path / 'org--good'}`" in str(refusal.value)


def test_an_id_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert HUB_ID.fullmatch("Qwen/Qwen2.5-0.5B")
    for path in ("models/", "/a/b", "./a/b", "a/b/c", "tiny", "~/a"):
        assert not HUB_ID.fullmatch(path)
    (tmp_path / "models").mkdir()
    with pytest.raises(MissingError, match="expected a model at 'models/gone'"):
        resolve_model("models/gone", tmp_path)
