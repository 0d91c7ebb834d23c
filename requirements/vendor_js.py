"""Vendors the libraries of the dashboard's pages: exact versions from npm, by hash.

The pages need no network. `vendor_js.py` fetches the packages with `npm pack`, checks them against
the integrity below, and writes single files, each with its licence, and `vendor.json` with their
hashes. `vendor_js.py --check` compares the files with those hashes, without network. Standard
library only.
"""

import base64
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cluster" / "dashboard" / "static" / "vendor"
LIST = "vendor.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A package of npm, and which of its files becomes which file of ours."""

    package: str
    version: str
    integrity: str
    """Of the package's archive, as npm's own lock files have it."""
    licence: str
    files: Mapping[str, str]
    """Path in the package to file name."""


LIBRARIES = (
    Library(
        package="preact",
        version="11.2.0",
        integrity="sha512-/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dq"
        "DU9OnLxMPZ7xBg==",
        licence="MIT",
        files={"dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "preact-hooks.js"},
    ),
    Library(
        package="htm",
        version="3.1.1",
        integrity="sha512-983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmT"
        "FoNKcg5DGAvxNQ==",
        licence="Apache-2.0",
        files={"dist/htm.mjs": "htm.js"},
    ),
    Library(
        package="@preact/signals-core",
        version="1.14.5",
        integrity="sha512-vcRv7Ityz5JVmeiVqIluLFzT/PDS/AlhHUpw3/aUWqcVUs6bDGIPXE/6RSC4evBNWYvnniozg5"
        "Syfj33al3gkg==",
        licence="MIT",
        files={"dist/signals-core.mjs": "signals-core.js"},
    ),
    Library(
        package="@preact/signals",
        version="2.11.4",
        integrity="sha512-Rb+5RPo9gWSaHtzJeauhHxiC8KP/IF2DEPkHPEOGOnuy2wnJzRqyeLRankUCYd6ADqtxS6GnWG"
        "v6Ie343d8aYw==",
        licence="MIT",
        files={"dist/signals.mjs": "signals.js"},
    ),
    Library(
        package="uplot",
        version="1.6.32",
        integrity="sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep"
        "3tOkyTxpiQIw==",
        licence="MIT",
        files={"dist/uPlot.iife.min.js": "uplot.js", "dist/uPlot.min.css": "uplot.css"},
    ),
)

TYPES = {
    "preact.d.ts": "export * from 'preact';",
    "preact-hooks.d.ts": "export * from 'preact/hooks';",
    "signals.d.ts": "export * from '@preact/signals';",
    "signals-core.d.ts": "export * from '@preact/signals-core';",
    "htm.d.ts": "import htm from 'htm';\nexport default htm;",
    "uplot.d.ts": "import uPlot from 'uplot';\nexport default uPlot;",
}
"""Where the type check of the pages finds the packages' own types; not part of the wheel."""

IMPORTS = {
    "preact": "./preact.js",
    "preact/hooks": "./preact-hooks.js",
    "@preact/signals-core": "./signals-core.js",
}
"""A browser finds a module by its path: a bare name would need an import map, which is an inline
script that the pages' policy forbids."""


class VendorError(Exception):
    """A package or a file is not what this script names."""


def fetch(library: Library) -> bytes:
    """Return the package's archive, checked against its integrity."""
    with tempfile.TemporaryDirectory() as folder:
        name = f"{library.package}@{library.version}"
        subprocess.run(
            ["npm", "pack", "--silent", "--ignore-scripts", name],
            cwd=folder,
            check=True,
            timeout=120,
        )
        content = next(Path(folder).glob("*.tgz")).read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != library.integrity:
        raise VendorError(f"{name}: expected {library.integrity}, found {found}")
    return content


def vendored(library: Library, archive: bytes) -> dict[str, bytes]:
    """Return our files: licence, then the package's code with relative imports."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        members = {member.name.partition("/")[2]: member for member in opened.getmembers()}

        def text(path: str) -> str:
            handle = opened.extractfile(members[path])
            if handle is None:
                raise VendorError(f"{library.package} has no file {path}")
            return handle.read().decode()

        licence = text("LICENSE").strip().replace("*/", "* /")
        head = f"/*! {library.package} {library.version} ({library.licence})\n\n{licence}\n*/\n"
        return {
            name: (head + as_module(name, text(path))).encode()
            for path, name in library.files.items()
        }


def as_module(name: str, code: str) -> str:
    """Return the code without source map, as a module with relative imports."""
    lines = [line for line in code.splitlines() if not line.startswith("//# sourceMappingURL")]
    code = "\n".join(lines).strip() + "\n"
    if name == "uplot.js":
        return code + "export default uPlot;\n"
    for bare, path in IMPORTS.items():
        code = code.replace(f'from"{bare}"', f'from"{path}"')
    return code


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write() -> None:
    """Fetch every library and write the files and their list."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    listed = {}
    for library in LIBRARIES:
        for name, content in vendored(library, fetch(library)).items():
            (FOLDER / name).write_bytes(content)
            listed[name] = {
                "package": library.package,
                "version": library.version,
                "integrity": library.integrity,
                "licence": library.licence,
                "sha256": sha256(content),
            }
    for name, line in TYPES.items():
        (FOLDER / name).write_text(line + "\n")
    (FOLDER / LIST).write_text(json.dumps(listed, indent=1) + "\n")


def differences(folder: Path = FOLDER) -> list[str]:
    """Return what in `folder` is not what `vendor.json` and this script say."""
    listed = json.loads((folder / LIST).read_text())
    wanted = {name: library for library in LIBRARIES for name in library.files.values()}
    present = {path.name for path in folder.iterdir()} - {LIST, *TYPES}
    found = [f"{name} is not listed" for name in sorted(present - set(wanted))]
    for name, library in wanted.items():
        entry = listed.get(name)
        if entry is None or name not in present:
            found.append(f"{name} is missing")
        elif (entry["version"], entry["integrity"]) != (library.version, library.integrity):
            found.append(f"{name} is of {entry['package']} {entry['version']}")
        elif entry["sha256"] != sha256((folder / name).read_bytes()):
            found.append(f"{name} was changed")
    return found


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("expected no argument, or --check", file=sys.stderr)
        return 2
    if not arguments:
        write()
    found = differences()
    for line in found:
        print(f"vendor: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
