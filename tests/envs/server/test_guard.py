"""Which requests a tool server admits: hosts, origins, types of bodies, and the token."""

import base64
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from envs.errors import ConfigError
from envs.server.app import create_app
from envs.server.guard import EVERY_HOST, Hosts, hosts_of
from envs.server.main import main, read_token
from tests.envs.server.scripted_host import ScriptedHost
from tests.envs.server.tool_serving import TOKEN, Served, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
BEARER = {"authorization": f"Bearer {TOKEN}"}
JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.address, headers=BEARER, timeout=30) as http:
        yield http


EVIL = "evil.example"


@pytest.mark.parametrize("path", ["/health", "/metrics", "/openapi.json", "/nowhere"])
@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"host": EVIL}, 421, "wrong_host"),
        ({"host": f"{EVIL}:80"}, 421, "wrong_host"),
        ({"host": "localhost.evil.example"}, 421, "wrong_host"),
        ({"host": "127.0.0.1.evil.example"}, 421, "wrong_host"),
        ({"host": "[::1].evil.example"}, 421, "wrong_host"),
        ({"host": "192.0.2.1"}, 421, "wrong_host"),
        ({"origin": f"http://{EVIL}"}, 403, "wrong_origin"),
        ({"origin": "null"}, 403, "wrong_origin"),
        ({"origin": "http://localhost:1"}, 403, "wrong_origin"),
        ({"host": EVIL, "origin": f"http://{EVIL}"}, 421, "wrong_host"),
        ({"sec-fetch-site": "cross-site"}, 403, "wrong_origin"),
        ({"sec-fetch-site": "same-site"}, 403, "wrong_origin"),
        ({"authorization": "Bearer guess"}, 401, "unauthorized"),
        ({"authorization": TOKEN}, 401, "unauthorized"),
        ({"authorization": "Basic !"}, 401, "unauthorized"),
        ({"x-padding": "x" * 20_000}, 431, "head_too_large"),
    ],
)
async def test_pages_and_unknown_clients_stay_out(
    http: httpx.AsyncClient, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    refused = await http.get(path, headers=headers)
    if status == 431 and refused.status_code == 400:  # h11 itself has refused the longer head
        return
    assert (refused.status_code, refused.json()["error"]["kind"]) == (status, kind)
    assert refused.headers["connection"] == "close"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:9000", "[::1]:8000", "localhost.", "127.0.0.1"]
)
async def test_names_of_loopback_are_known_whatever_the_port(
    http: httpx.AsyncClient, host: str
) -> None:
    assert (await http.get("/health", headers={"host": host})).status_code == 200
    own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert (await http.get("/health", headers=own)).status_code == 200


@pytest.mark.parametrize("path", ["/calls", "/sessions", "/sessions/close", "/mcp"])
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "text/plain; application/json"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=application/json"},
        {},
        JSON | {"content-encoding": "gzip"},
    ],
)
async def test_a_body_that_a_page_can_send_unasked_is_refused(
    http: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    refused = await http.post(path, content=b"{}", headers=headers)
    assert refused.status_code == 415
    assert refused.json()["error"]["kind"] == "unsupported_type"


@pytest.mark.parametrize("path", ["/stream", "/ws", "/nowhere"])
async def test_sockets_have_the_same_guard(served: Served, path: str) -> None:
    for headers, status in (
        (BEARER | {"Host": EVIL}, 421),
        (BEARER | {"Origin": f"http://{EVIL}"}, 403),
        ({}, 401),
    ):
        dialled = connect(f"ws://127.0.0.1:{served.port}{path}", additional_headers=headers)
        if "Host" in headers:
            dialled = connect(
                f"ws://{EVIL}{path}",
                additional_headers=BEARER,
                host="127.0.0.1",
                port=served.port,
                proxy=None,
            )
        with pytest.raises(InvalidStatus) as refused:
            await dialled
        assert refused.value.response.status_code == status


async def test_a_token_may_be_the_password_of_an_address(served: Served) -> None:
    url = f"http://any:{TOKEN.replace(' ', '%20')}@127.0.0.1:{served.port}/health"
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).status_code == 200
        basic = base64.b64encode(b"x:guess").decode()
        wrong = await client.get(
            f"{served.address}/health", headers={"authorization": f"Basic {basic}"}
        )
        assert wrong.status_code == 401
        assert wrong.headers["www-authenticate"] == "Bearer"  # a browser then asks for no password


async def test_a_method_in_a_header_is_no_method(http: httpx.AsyncClient) -> None:
    for header in ("x-http-method-override", "x-method-override", "x-http-method"):
        overridden = await http.get("/sessions/none", headers={header: "DELETE"})
        assert overridden.status_code == 405


async def test_a_server_without_a_token_still_checks_where_a_request_comes_from() -> None:
    app = create_app(ScriptedHost(), "", hosts=Hosts(frozenset({"localhost"})))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/openapi.json")).status_code == 200
        for headers in ({"host": EVIL}, {"origin": f"http://{EVIL}"}):
            assert (await client.get("/openapi.json", headers=headers)).status_code in (403, 421)


async def test_names_of_a_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        hosts = hosts_of(own, ["Tools.Example:8000"])
    assert hosts.know("127.0.0.1:1") and hosts.know("tools.example:9") and hosts.know("[::1]")
    assert not hosts.know("10.0.0.1") and not hosts.know("") and not hosts.know(EVIL)
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        hosts = hosts_of(everywhere)
    assert hosts.know("10.0.0.1:1") and hosts.know(socket.gethostname()) and not hosts.know(EVIL)
    with socket.socket(socket.AF_UNIX) as local:
        assert hosts_of(local) is EVERY_HOST


async def test_a_token_file_may_end_with_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for text in ("secret", "secret\n", "secret\r\n"):
        path.write_text(text)
        assert read_token(path) == "secret"
    for text in ("", "\n", "two\nlines"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="expected one line with a token"):
            read_token(path)
    with pytest.raises(ConfigError, match="cannot read the token"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--token-file", "/nowhere/token"], "cannot read the token in /nowhere/token"),
        (["--token-variable", "NOT_SET_HERE"], "environment variable NOT_SET_HERE, found none"),
        (["--host", "tools.example"], "expected an IP address for --host"),
    ],
)
async def test_tokens_and_addresses_that_cannot_be_used_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
