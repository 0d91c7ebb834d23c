"""Who is let in: hosts, origins, tokens, roles, cookies, headers."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from cluster.dashboard.serve import (
    OPERATOR_VARIABLE,
    Wanted,
    check_exposure,
    settings_of,
    tokens_of,
)
from cluster.dashboard.settings import Tokens
from envs.errors import ConfigError
from tests.cluster.dashboard.conftest import HOST, OPERATOR, VIEWER, Dashboard, Open
from tests.cluster.dashboard.sample_run import write_sample_run

ORIGIN = f"http://{HOST}"


def anonymous(dashboard: Dashboard) -> TestClient:
    """Return a client without token and cookie."""
    return TestClient(dashboard.client.app, base_url=ORIGIN)


def test_without_a_token_nothing_is_answered(dashboard: Dashboard) -> None:
    client = anonymous(dashboard)
    addresses = ["/runs", f"{dashboard.run}/episodes", "/live?run=x", "/openapi.json", "/nothing"]
    for address in addresses:
        found = client.get(f"/api/v1{address}")
        assert found.status_code == 401, address
        assert found.json()["fix"]
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"authorization": "Bearer wrong"}).status_code == 401


def test_pages_are_served_without_a_token_and_hold_no_secret(dashboard: Dashboard) -> None:
    client = anonymous(dashboard)
    for address in ("/", "/runs/x/episodes", "/static/index.html"):
        found = client.get(address)
        assert found.status_code == 200
        assert OPERATOR not in found.text
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
    assert client.get("/static/../app.py").status_code in (200, 404)
    assert "create_app" not in client.get("/static/../app.py").text
    assert client.get("/static/%2e%2e/app.py").status_code == 404


def test_answers_of_the_api_can_be_no_page(dashboard: Dashboard) -> None:
    headers = dashboard.client.get("/api/v1/runs").headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "application/json"
    assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:9999", "", HOST + ".x"])
def test_a_wrong_host_is_refused(dashboard: Dashboard, host: str) -> None:
    for address in ("/api/v1/runs", "/", "/metrics"):
        found = dashboard.client.get(address, headers={"host": host})
        assert (found.status_code, found.json()["code"]) == (421, "wrong-host")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_foreign_page_is_refused(dashboard: Dashboard, headers: dict[str, str]) -> None:
    found = dashboard.client.get("/api/v1/runs", headers=headers)
    assert (found.status_code, found.json()["code"]) == (403, "wrong-origin")
    steer = dashboard.client.post(
        f"/api/v1{dashboard.run}/steer", json={"kind": "stop"}, headers=headers
    )
    assert steer.status_code == 403


def test_a_token_becomes_a_cookie_that_scripts_cannot_read(dashboard: Dashboard) -> None:
    client = anonymous(dashboard)
    client.headers["origin"] = ORIGIN
    assert client.post("/api/v1/session", json={"token": "wrong"}).status_code == 401
    found = client.post("/api/v1/session", json={"token": OPERATOR})
    assert found.json()["role"] == "operator"
    cookie = found.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert OPERATOR not in cookie
    assert client.get("/api/v1/runs").status_code == 200
    assert client.get("/api/v1/session").json()["role"] == "operator"
    assert client.delete("/api/v1/session").status_code == 204
    assert client.get("/api/v1/runs").status_code == 401


def test_a_cookie_alone_changes_nothing_without_an_origin(dashboard: Dashboard) -> None:
    client = anonymous(dashboard)
    client.post("/api/v1/session", json={"token": OPERATOR}, headers={"origin": ORIGIN})
    address = f"/api/v1{dashboard.run}/steer/preview"
    assert client.post(address, json={"kind": "stop"}).status_code == 403
    allowed = client.post(address, json={"kind": "stop"}, headers={"origin": ORIGIN})
    assert allowed.status_code == 200


def test_a_viewer_sees_everything_and_changes_nothing(dashboard: Dashboard) -> None:
    client = anonymous(dashboard)
    client.headers["authorization"] = f"Bearer {VIEWER}"
    assert client.get("/api/v1/session").json() == {
        "role": "viewer",
        "version": "unknown",
        "demo": False,
        "can_write": False,
    }
    assert client.get(f"/api/v1{dashboard.run}/episodes").status_code == 200
    for address in ("steer", "steer/preview", "sft-set"):
        found = client.post(f"/api/v1{dashboard.run}/{address}", json={"kind": "stop"})
        assert (found.status_code, found.json()["code"]) == (403, "viewer")


def test_a_dashboard_that_may_only_read_writes_nothing(
    tmp_path: Path, open_dashboard: Open
) -> None:
    write_sample_run(tmp_path / "runs" / "sample")
    found = open_dashboard(tmp_path / "runs", read_only=True)
    for address, body in (("steer", {"kind": "stop"}), ("sft-set", {"name": "x"})):
        answer = found.client.post(f"/api/v1{found.run}/{address}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "read-only")


def test_off_loopback_a_token_and_an_origin_are_required() -> None:
    check_exposure(Wanted())
    check_exposure(Wanted(host="::1"))
    with pytest.raises(ConfigError, match=OPERATOR_VARIABLE):
        check_exposure(Wanted(host="0.0.0.0", origins=("https://runs.example.org",)))
    token = {OPERATOR_VARIABLE: OPERATOR}
    with pytest.raises(ConfigError, match="--origin"):
        check_exposure(Wanted(host="0.0.0.0", environ=token))
    check_exposure(Wanted(host="0.0.0.0", environ=token, origins=("https://runs.example.org",)))
    for origin in ("runs.example.org", "https://runs.example.org/path", "javascript:alert(1)"):
        with pytest.raises(ConfigError, match="origin"):
            check_exposure(Wanted(host="0.0.0.0", environ=token, origins=(origin,)))
    with pytest.raises(ConfigError, match="IP address"):
        check_exposure(Wanted(host="example.org"))


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        tokens_of(Wanted(environ={OPERATOR_VARIABLE: "short"}))
    assert len(tokens_of(Wanted()).operator) > 30
    assert tokens_of(Wanted()) != tokens_of(Wanted())


def test_hosts_and_origins_follow_from_the_addresses() -> None:
    tokens = Tokens(operator=OPERATOR, viewer="")
    wanted = Wanted(origins=("https://Runs.example.org", "http://10.0.0.2:81"))
    settings = settings_of(wanted, (Path("/x"),), tokens, 8365)
    assert {"127.0.0.1:8365", "localhost:8365", "[::1]:8365"} <= settings.hosts
    assert {"runs.example.org", "10.0.0.2:81"} <= settings.hosts
    assert "https://runs.example.org" in settings.origins
    assert not settings.secure_cookie
    assert settings_of(
        Wanted(origins=("https://a.example",)), (Path("/x"),), tokens, 1
    ).secure_cookie
    assert not [host for host in settings.hosts if host.startswith("0.0.0.0")]
