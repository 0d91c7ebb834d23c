"""The files of the pages: vendored as listed, small, typed, and without a way to parse markup."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from requirements import vendor_js
from tests.dashboard_ui import api_types
from tests.dashboard_ui.chromium import FOLDER, NODE_MODULES
from tests.project_tree import ROOT

STATIC = ROOT / "cluster" / "dashboard" / "static"
FIRST_BYTES = 150_000
"""JavaScript and CSS of the first page, not compressed."""
LOC_MAX = 400


def own_modules() -> list[Path]:
    """The pages' own modules."""
    return [path for path in STATIC.rglob("*.js") if path.parent.name != "vendor"]


def imported(module: Path) -> set[Path]:
    """Return a module and all that it imports, however far; not what it loads later."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        names = re.findall(
            r"""(?:^|[\s;}])(?:import|from)\s*["'](\.[^"']+)["']""", path.read_text()
        )
        waiting += [(path.parent / name).resolve() for name in names if name.endswith(".js")]
    return found


def test_vendored_files_are_those_of_the_list() -> None:
    assert vendor_js.differences() == []
    for name in (name for library in vendor_js.LIBRARIES for name in library.files.values()):
        head = (STATIC / "vendor" / name).read_text()[:600].lower()
        assert "licen" in head or "copyright" in head, name


def test_a_changed_vendored_file_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "vendor"
    shutil.copytree(STATIC / "vendor", copy)
    (copy / "preact.js").write_text("export const h = 1;\n")
    (copy / "more.js").write_text("")
    assert vendor_js.differences(copy) == ["more.js is not listed", "preact.js was changed"]


def test_the_first_page_is_small() -> None:
    page = (STATIC / "index.html").read_text()
    sheets = [STATIC / name for name in re.findall(r'href="/static/(\S+?\.css)"', page)]
    modules = imported(STATIC / "app.js") | imported(STATIC / "pages" / "runs.js")
    assert STATIC / "vendor" / "preact.js" in modules
    size = sum(path.stat().st_size for path in {*sheets, *modules})
    assert 50_000 < size <= FIRST_BYTES, size


def test_no_module_is_too_long_and_nothing_comes_from_elsewhere() -> None:
    for path in [*own_modules(), *STATIC.glob("css/*.css"), STATIC / "index.html"]:
        text = path.read_text()
        assert len(text.splitlines()) <= LOC_MAX, path
        assert not re.search(r"https?://(?!www\.w3\.org)", text), path
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page)


def test_every_page_is_loaded_by_name() -> None:
    named = set(re.findall(r"^  \w+: \['(\w+)'", (STATIC / "app.js").read_text(), re.M))
    missing = [name for name in named if not (STATIC / "pages" / f"{name}.js").exists()]
    assert len(named) >= 18
    assert missing == []


def test_types_of_the_answers_are_those_of_the_api() -> None:
    assert api_types.FILE.read_text() == api_types.written(), (
        "run `python -m tests.dashboard_ui.api_types`"
    )


def run_node(*command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("node") is None:
        pytest.skip("needs Node.js: apt-get install nodejs npm")
    if not NODE_MODULES.is_dir():
        pytest.skip("needs its packages: npm ci --prefix tests/dashboard_ui --ignore-scripts")
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )


def test_types_hold() -> None:
    found = run_node(str(NODE_MODULES / ".bin" / "tsc"), "--project", str(FOLDER / "tsconfig.json"))
    assert found.returncode == 0, found.stdout


def lint(*paths: Path) -> subprocess.CompletedProcess[str]:
    config = str(FOLDER / "eslint.config.js")
    return run_node(str(NODE_MODULES / ".bin" / "eslint"), "--config", config, *map(str, paths))


def test_rules_hold() -> None:
    found = lint(STATIC)
    assert found.returncode == 0, found.stdout


def test_rules_catch_what_would_parse_a_text() -> None:
    bad = FOLDER / "bad.test-input.js"
    lines = [
        "document.body.innerHTML = name;",
        "document.body['outerHTML'] = name;",
        "document.body.insertAdjacentHTML('beforeend', name);",
        "document.write(name);",
        "new Function(name);",
        "location.href = 'javascript:1';",
        "export const props = { dangerouslySetInnerHTML: { __html: name } };",
    ]
    bad.write_text("\n".join(lines) + "\n")
    try:
        found = lint(bad)
    finally:
        bad.unlink()
    assert found.returncode == 1, found.stderr
    caught = {int(line) for line in re.findall(r"^\s+(\d+):\d+\s+error", found.stdout, re.M)}
    assert caught == set(range(1, len(lines) + 1)), found.stdout
