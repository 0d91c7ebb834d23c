"""An address at which no Ray head answers is said at once."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.config.run_config import load_config
from cluster.fleet.ray_address import check_ray_address
from cluster.fleet.ray_session import ray_session
from cluster.training.train import run_train
from envs.errors import MissingError

Serve = Callable[[socket.socket], None]


@pytest.fixture
def listener() -> Iterator[Callable[[Serve], str]]:
    """Start a TCP server that treats one connection as told; returns its address."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(10)
    done = threading.Event()

    def start(serve: Serve) -> str:
        def run() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                serve(connection)
                done.wait(10)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    done.set()
    server.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1"])
def test_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f" {address} ")
    with pytest.raises(MissingError) as caught, ray_session(load_config("catalog")):
        pass
    assert f"RAY_ADDRESS={address}" in str(caught.value)
    assert "nothing answers there" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_host() -> None:
    with pytest.raises(
        MissingError, match=r"RAY_ADDRESS=no-such-host\.invalid:6379: nothing answers"
    ):
        check_ray_address("no-such-host.invalid:6379")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", "address of a dashboard"),
        ("https://head/ray", "address of a dashboard"),
        ("ray://127.0.0.1:10001", "Ray Client"),
    ],
)
def test_addresses_of_another_kind_say_what_they_are(address: str, said: str) -> None:
    with pytest.raises(MissingError, match=said) as caught:
        check_ray_address(address)
    assert "give HOST:PORT" in str(caught.value)


def test_another_server(listener: Callable[[Serve], str]) -> None:
    def http(connection: socket.socket) -> None:
        connection.recv(64)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(MissingError, match="no Ray head"):
        check_ray_address(listener(http))


def test_a_server_that_hangs_up(listener: Callable[[Serve], str]) -> None:
    with pytest.raises(MissingError, match=r"no Ray head|nothing answers"):
        check_ray_address(listener(lambda connection: connection.shutdown(socket.SHUT_RDWR)))


def test_a_server_that_says_nothing(listener: Callable[[Serve], str]) -> None:
    with pytest.raises(MissingError, match="says nothing"):
        check_ray_address(listener(lambda connection: None), patience_s=0.05)


def test_a_server_that_speaks_grpc_is_left_to_ray(listener: Callable[[Serve], str]) -> None:
    def settings(connection: socket.socket) -> None:
        assert connection.recv(64).startswith(b"PRI * HTTP/2.0")
        connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))

    check_ray_address(listener(settings))


@pytest.mark.parametrize("address", ["auto", "local", "nonsense", "1.2.3.4", "head:port", "a:0"])
def test_what_is_no_host_and_port_is_left_to_ray(address: str) -> None:
    check_ray_address(address)


def test_no_run_directory_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    places = [f"run.dir={tmp_path / 'runs'}", f"run.models_dir={tmp_path / 'models'}"]
    with pytest.raises(MissingError, match="nothing answers there"):
        run_train(load_config("catalog", places), resume=False)
    assert not (tmp_path / "runs").exists()
