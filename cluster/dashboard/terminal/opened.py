"""The index of one run in this process, for commands that print and end."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.dashboard.index.library import KnownRun, Library, run_id
from cluster.dashboard.index.run_index import RunIndex
from cluster.dashboard.problems import ApiError
from cluster.dashboard.settings import Settings, Tokens, cache_folder
from envs.errors import ConfigError, MissingError, StoreError, TrialrunError

_AT_ONCE = 4_000
_POLL_S = 0.5
_SAY_S = 5.0


@dataclass(frozen=True, slots=True)
class OneRun:
    """A run whose index is refreshed only when that is asked for."""

    known: KnownRun
    index: RunIndex

    def read(self, *, details: bool) -> None:
        """Read what is new; with `details` also every episode itself, which may take minutes, and
        without it only the newest.
        """
        self.index.refresh()
        shared = self.known.facts.shared_sessions()
        said_at = time.monotonic()
        while self.index.read_details(_AT_ONCE, shared_sessions=shared) and details:
            if time.monotonic() - said_at > _SAY_S:
                said_at, found = time.monotonic(), self.index.coverage
                sys.stderr.write(f"episodes read {found.details:,} of {found.episodes:,}\n")

    def follow(self, *, details: bool) -> Iterator[None]:
        """Read what is new again and again, and yield after each time, while a job writes."""
        while True:
            ends = not self.known.facts.is_written()  # before the last look
            self.read(details=details)
            yield
            if ends:
                return
            time.sleep(_POLL_S)


@contextmanager
def open_run(path: Path, environ: Mapping[str, str]) -> Iterator[OneRun]:
    """Open the run in the folder `path`.

    What is asked wrongly inside the block is raised as ConfigError or MissingError, so that a
    command ends with their exit code.
    """
    settings = Settings(
        roots=(path.resolve(),),
        cache=cache_folder(environ),
        tokens=Tokens(operator="", viewer=""),
    )
    library = Library(settings)
    try:
        known = library.run(run_id(path.resolve()))
        yield OneRun(known, library.open(known))
    except ApiError as error:
        raise _as_command_error(error) from error
    finally:
        library.close()


def _as_command_error(error: ApiError) -> TrialrunError:
    place = error.place
    where = f" (at character {place.position + 1})" if place else ""
    text = f"{error.detail}{where}: {error.fix}"
    if error.status == 404:
        return MissingError(text)
    return ConfigError(text) if error.status < 500 and error.status != 409 else StoreError(text)
