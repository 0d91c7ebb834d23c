"""Addresses of mirrors: which storage, which folder, without credentials."""

from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, quote, unquote, urlsplit

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "file")
_OF_S3 = ("endpoint", "region")
"""Options of an address: `s3://bucket/first?endpoint=http://HOST:9000`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorAddress:
    """A folder of object storage; `str()` is what a command takes for it."""

    scheme: str
    path: str
    """Bucket and prefix, or an absolute path; no slash at its end."""
    endpoint: str = ""
    region: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    @property
    def with_options(self) -> str:
        """The address with its endpoint and region, for a shell that does not have them."""
        given = {"endpoint": self.endpoint, "region": self.region}
        options = "&".join(f"{name}={value}" for name, value in given.items() if value)
        return f"{self}?{options}" if options else str(self)

    @property
    def uri(self) -> str:
        """The address with what a URI may not hold written as `%..`."""
        return f"{self.scheme}://{quote(self.path)}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def below(self, name: str) -> "MirrorAddress":
        """Return the address of `name` in this folder."""
        return replace(self, path=f"{self.path}/{name}")


def is_address(text: str) -> bool:
    """Whether `text` names object storage, not a path."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.isalnum() and scheme.isascii()


def parse_address(text: str, endpoint: str = "", region: str = "") -> MirrorAddress:
    """Return the address that `text` is. Raises ValueError, which never repeats credentials."""
    if not is_address(text):
        raise ValueError(
            f"expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///FOLDER, found {text!r}"
        )
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ValueError(
            f"expected an address that begins with {', '.join(f'{s}://' for s in SCHEMES)}, found "
            f"{parts.scheme}://"
        )
    host = parts.netloc
    if "@" in host and not _names_no_secret(parts.scheme, host.rpartition("@")[0]):
        raise ValueError(
            "the address holds credentials, which would be stored with the run: leave them out, "
            "and set them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - set(_OF_S3)):
        raise ValueError(
            f"unknown option {unknown[0]!r} in the address; known are {' and '.join(_OF_S3)}"
        )
    endpoint, region = endpoint or options.get("endpoint", ""), region or options.get("region", "")
    if (endpoint or region) and parts.scheme != "s3":
        raise ValueError(f"an endpoint and a region belong to s3://, found {parts.scheme}://")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"expected http://HOST:PORT as the endpoint, found {endpoint!r}")
    if "@" in endpoint:
        raise ValueError("the endpoint holds credentials: set them in the environment")
    path = f"{host}{unquote(parts.path)}".rstrip("/")
    if not path or "//" in path or _is_misplaced(parts.scheme, host, path):
        expected = "file:///FOLDER" if parts.scheme == "file" else f"{parts.scheme}://BUCKET/PREFIX"
        raise ValueError(f"expected {expected}, found {parts.scheme}://{path}")
    if any(part in (".", "..") for part in path.split("/")) or parts.fragment:
        raise ValueError(f"expected an address without '.', '..' and '#', found {path!r}")
    return MirrorAddress(
        scheme=parts.scheme, path=path, endpoint=endpoint.rstrip("/"), region=region
    )


def _is_misplaced(scheme: str, host: str, path: str) -> bool:
    """Whether a bucket is missing, or a folder stands where it belongs."""
    return bool(host) or not path[1:] if scheme == "file" else not host


def _names_no_secret(scheme: str, before_at: str) -> bool:
    """Whether what stands before `@` is `anonymous` (Google) or a container (Azure)."""
    if scheme.startswith("abfs"):
        return ":" not in before_at
    return scheme in ("gs", "gcs") and before_at == "anonymous"
