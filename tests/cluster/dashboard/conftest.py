"""A dashboard in this process over a small run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cluster.dashboard.app import create_app
from cluster.dashboard.index.library import Library
from cluster.dashboard.settings import Settings, Tokens
from tests.cluster.dashboard.sample_run import write_sample_run
from tests.waiting import expect_within

OPERATOR, VIEWER = "operator-token-0123456789", "viewer-token-0123456789"
HOST = "127.0.0.1:8365"


def settings_for(root: Path, cache: Path, **changed: Any) -> Settings:
    """Return the settings of a dashboard over `root`."""
    values: dict[str, Any] = {
        "roots": (root,),
        "cache": cache,
        "tokens": Tokens(operator=OPERATOR, viewer=VIEWER),
        "hosts": frozenset({HOST}),
        "origins": frozenset({f"http://{HOST}"}),
        "poll_s": 0.02,
        "memory_mb": 128,
        "user": "tester",
    }
    return Settings(**{**values, **changed})


@dataclass
class Dashboard:
    """A client with the operator's token, and the run that the tests ask for."""

    client: TestClient
    root: Path

    def get(self, path: str, expected: int = 200, **parameters: Any) -> Any:
        """Return the JSON of a route below `/api/v1`."""
        found = self.client.get(f"/api/v1{path}", params=parameters)
        assert found.status_code == expected, found.text
        return found.json()

    @property
    def run(self) -> str:
        """Address of the sample run."""
        rows = self.get("/runs")["runs"]
        return f"/runs/{next(row['id'] for row in rows if row['name'] == 'sample')}"

    def rows(self, filter: str = "", **parameters: Any) -> list[dict[str, Any]]:
        """Return the rows of a page of episodes."""
        parameters = {"limit": 500, "filter": filter, **parameters}
        return self.get(f"{self.run}/episodes", **parameters)["rows"]

    def read(self) -> None:
        """Wait until everything that is stored has been read."""
        expect_within(20, lambda: self.get(f"{self.run}/health")["coverage"]["complete"])


Open = Callable[..., Dashboard]


@pytest.fixture
def open_dashboard(tmp_path: Path) -> Iterator[Open]:
    """Return a function that starts a dashboard over a folder."""
    clients: list[TestClient] = []

    def opened(root: Path, **changed: Any) -> Dashboard:
        settings = settings_for(root, tmp_path / f"cache-{len(clients)}", **changed)
        client = TestClient(create_app(settings), base_url=f"http://{HOST}")
        client.headers["authorization"] = f"Bearer {OPERATOR}"
        client.__enter__()
        clients.append(client)
        return Dashboard(client, root)

    yield opened
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard over the sample run, all of it read; tests of a module share it."""
    root = tmp_path_factory.mktemp("runs")
    write_sample_run(root / "sample")
    settings = settings_for(root, tmp_path_factory.mktemp("cache"))
    with TestClient(create_app(settings), base_url=f"http://{HOST}") as client:
        client.headers["authorization"] = f"Bearer {OPERATOR}"
        found = Dashboard(client, root)
        found.read()
        yield found


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Callable[[Path], Library]]:
    """Return a function that makes a library over a folder, whose indexes the test refreshes."""
    made: list[Library] = []

    def opened(root: Path) -> Library:
        made.append(Library(settings_for(root, tmp_path / "cache")))
        return made[-1]

    yield opened
    for one in made:
        one.close()
