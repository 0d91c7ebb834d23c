"""A folder of object storage: the only module that talks to one, through pyarrow's filesystems.

Every object appears whole or not at all: S3, Google and Azure show an object when its upload is
complete. On a local or network filesystem (`file://`) a temporary name and a rename do the same.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from envs.errors import ConfigError, InfraError
from rollout.mirror.address import MirrorAddress

CONNECT_S, SILENCE_S, ATTEMPTS = 5.0, 10.0, 3
"""Seconds for a connection, seconds without a byte, and attempts of one request; then it failed."""
_WRITE = 1 << 17
_FAILURES = (OSError, pa.ArrowException)
Throttle = Callable[[int], None]


def _no_limit(nbytes: int) -> None:
    return None


class Place:
    """The objects below one address; keys are relative, with slashes.

    Every method raises InfraError where the storage does not do what it is asked to.
    """

    def __init__(self, address: MirrorAddress) -> None:
        """Raises ConfigError where the storage refuses the address itself."""
        self.address = address
        try:
            self._fs, self._root = _filesystem(address)
        except (*_FAILURES, ValueError) as error:
            raise ConfigError(f"{address}: {_one_line(error)}") from None
        self._local = address.scheme == "file"

    def __str__(self) -> str:
        return str(self.address)

    def below(self, name: str) -> "Place":
        """Return the folder `name` in this one."""
        return Place(self.address.below(name))

    def read(self, key: str) -> bytes | None:
        """Return an object; None where there is none."""
        with self._doing(f"give {key}"):
            try:
                with self._fs.open_input_stream(self._at(key)) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

    def write(self, key: str, content: bytes, throttle: Throttle = _no_limit) -> None:
        """Write or replace an object; it appears whole. `throttle` gets the bytes sent."""
        with self._doing(f"take {key}"):
            path = self._at(key)
            if not self._local:
                self._send(path, content, throttle)
                return
            self._fs.create_dir(str(PurePosixPath(path).parent), recursive=True)
            draft = f"{path}.{secrets.token_hex(4)}.draft"
            self._send(draft, content, throttle)
            self._fs.move(draft, path)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size of every object below `folder`, by its key."""
        with self._doing(f"list {folder}"):
            found = self._fs.get_file_info(
                fs.FileSelector(self._at(folder), recursive=True, allow_not_found=True)
            )
        start = len(self._root) + 1
        return {info.path[start:]: info.size for info in found if info.is_file}

    def folders(self) -> list[str]:
        """Return the names of the folders in this one."""
        with self._doing("list its folders"):
            found = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def size(self, key: str) -> int | None:
        """Return the size of an object; None where there is none."""
        with self._doing(f"describe {key}"):
            info = self._fs.get_file_info(self._at(key))
        return info.size if info.is_file else None

    def age_s(self, key: str) -> float | None:
        """Return for how many seconds an object has been as it is; None where there is none.

        Both ends of that time are the storage's own: clocks of nodes are not compared. Its
        resolution is a second.
        """
        probe = f".probe-{secrets.token_hex(8)}"
        self.write(probe, b"")
        with self._doing(f"describe {key}"):
            now, then = self._fs.get_file_info([self._at(probe), self._at(key)])
            self._fs.delete_file(self._at(probe))
        if not then.is_file:
            return None
        return (now.mtime_ns - then.mtime_ns) / 1e9

    def written_at(self, key: str) -> float | None:
        """Return when an object was written, in Unix seconds of the storage; None for none."""
        with self._doing(f"describe {key}"):
            info = self._fs.get_file_info(self._at(key))
        return info.mtime_ns / 1e9 if info.is_file else None

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are passed over."""
        for key in keys:
            with self._doing(f"delete {key}"):
                try:
                    self._fs.delete_file(self._at(key))
                except FileNotFoundError:
                    continue

    def _send(self, path: str, content: bytes, throttle: Throttle) -> None:
        with self._fs.open_output_stream(path) as stream:
            for start in range(0, len(content), _WRITE):
                piece = content[start : start + _WRITE]
                throttle(len(piece))
                stream.write(piece)

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            raise InfraError(f"{self} did not {what}: {_one_line(error)}") from error


def _filesystem(address: MirrorAddress) -> tuple[fs.FileSystem, str]:
    if address.scheme != "s3":
        return fs.FileSystem.from_uri(address.uri)
    filesystem = fs.S3FileSystem(
        endpoint_override=address.endpoint or None,
        region=address.region or None,
        connect_timeout=CONNECT_S,
        request_timeout=SILENCE_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # a small object is one request
    )
    return filesystem, address.path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
