"""The modules that tool sources can import.

They are imported in advance, because no file can be read once the zygote is locked down.
"""

import contextlib
import importlib
import os
import pkgutil
import sys
import zoneinfo

from envs.sandbox.options import ZygoteOptions

_STDLIB = """
    abc array ast asyncio base64 binascii bisect calendar cmath codecs collections.abc colorsys
    contextlib copy csv dataclasses datetime decimal difflib encodings.ascii encodings.cp1252
    encodings.idna
    encodings.latin_1 encodings.utf_16 enum fnmatch fractions functools graphlib hashlib heapq hmac
    html html.parser inspect io itertools json keyword locale logging math numbers operator pathlib
    pprint queue random re secrets statistics string stringprep struct textwrap threading time
    traceback types typing unicodedata urllib.parse uuid warnings weakref xml.etree.ElementTree zlib
    zoneinfo _strptime
"""
_FILES = """
    bz2 configparser fcntl fileinput glob gzip lzma mmap shutil sqlite3 tarfile tempfile zipfile
"""
_NUMPY = "numpy numpy.fft numpy.linalg numpy.ma numpy.polynomial numpy.random"

_BLAS_SIZE = 200


def preload(options: ZygoteOptions) -> list[object]:
    """Import all modules that tools may import; return objects to keep referenced (time zones).

    Raises ImportError.
    """
    for name in _STDLIB.split():
        importlib.import_module(name)
    if options.files:
        for name in _FILES.split():
            with contextlib.suppress(ImportError):  # Python may be built without one of them
                importlib.import_module(name)
    if options.imports == "numpy":
        sys.path.append(options.packages)
        for name in _NUMPY.split():
            importlib.import_module(name)
        numpy = sys.modules["numpy"]
        square = numpy.ones((_BLAS_SIZE, _BLAS_SIZE)) + numpy.eye(_BLAS_SIZE)
        numpy.linalg.solve(
            square @ square, square
        )  # BLAS allocates its memory at first use; later it cannot
    for name, folder in options.further.items():
        sys.path.append(folder)
        _import_whole(name)
    if _native_threads() > 1:
        raise ImportError(
            "expected packages that start no threads, which a fork does not copy; found some with "
            f"tools.isolation.imports = {options.imports!r} and packages = "
            f"{list(options.further)}: install other builds, or leave them out"
        )
    zones: list[object] = [zoneinfo.ZoneInfo(key) for key in zoneinfo.available_timezones()]
    sys.path.clear()
    sys.path_importer_cache.clear()
    return zones


def _pass(name: str) -> None:
    """Pass over a package that cannot be imported."""


def _import_whole(name: str) -> None:
    """Import a package with all of its public modules: later, no file can be read."""
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}.", _pass):
        if not found.name.rpartition(".")[2].startswith(("_", "test")):
            with contextlib.suppress(Exception):  # an optional part, or a script
                importlib.import_module(found.name)


def _native_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1
