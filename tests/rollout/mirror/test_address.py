"""Addresses of mirrors: what is refused, and that no secret is repeated."""

import pytest

from cluster.config.places import storage_address
from cluster.config.run_config import load_config
from envs.errors import ConfigError
from rollout.mirror.address import is_address, parse_address
from rollout.mirror.config import MirrorConfig


@pytest.mark.parametrize(
    ("text", "path", "endpoint"),
    [
        ("s3://bucket/prefix/", "bucket/prefix", ""),
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/a?endpoint=http://h:9000/&region=r", "bucket/a", "http://h:9000"),
        ("s3://bucket/with%20blank", "bucket/with blank", ""),
        ("gs://anonymous@bucket/a", "anonymous@bucket/a", ""),
        ("file:///srv/mirrors", "/srv/mirrors", ""),
    ],
)
def test_an_address_is_read(text: str, path: str, endpoint: str) -> None:
    found = parse_address(text)
    assert (found.path, found.endpoint) == (path, endpoint)
    assert parse_address(found.below("first").with_options) == found.below("first")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bucket/prefix", "expected s3://BUCKET/PREFIX"),
        ("http://bucket/prefix", "expected an address that begins with s3://"),
        ("s3://", "expected s3://BUCKET/PREFIX"),
        ("s3:///prefix", "expected s3://BUCKET/PREFIX"),
        ("s3://bucket//prefix", "expected s3://BUCKET/PREFIX"),
        ("file://relative/folder", "expected file:///FOLDER"),
        ("file:///", "expected file:///FOLDER"),
        ("s3://bucket/../other", "without '.', '..'"),
        ("s3://bucket/a?endpiont=http://h", "unknown option 'endpiont'"),
        ("s3://bucket/a?endpoint=h:9000", "expected http://HOST:PORT"),
        ("gs://bucket/a?region=r", "belong to s3://"),
    ],
)
def test_what_is_no_address_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        parse_address(text)
    with pytest.raises(ConfigError, match="mirror"):
        load_config("catalog", [f"mirror.url={text}"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["mirror.url=s3://KEY:HUSH@bucket/a"],
        ["mirror.url=s3://bucket/a", "mirror.endpoint=http://KEY:HUSH@host:9000"],
        ["mirror.url=abfs://KEY:HUSH@account/a"],
    ],
)
def test_credentials_are_refused_and_not_repeated(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="in the environment") as caught:
        load_config("catalog", overrides)
    assert "HUSH" not in str(caught.value)


def test_the_endpoint_of_the_environment_holds_where_none_is_named() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "http://s3:2/"}
    assert storage_address("s3://b/a", environ, MirrorConfig()).endpoint == "http://s3:2"
    named = MirrorConfig(url="s3://b/a", endpoint="https://own:3")
    assert storage_address("s3://b/a", environ, named).endpoint == "https://own:3"
    assert storage_address("gs://b/a", environ, MirrorConfig()).endpoint == ""
    with pytest.raises(ConfigError, match=r"mirror\.endpoint and mirror\.region need"):
        load_config("catalog", ["mirror.endpoint=http://h:1"])


def test_a_path_is_no_address() -> None:
    assert not is_address("runs/first") and not is_address("/srv/a:b") and is_address("s3://b")
