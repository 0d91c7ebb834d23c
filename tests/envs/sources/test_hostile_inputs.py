"""Hostile sources and documents neither hang nor end the process that reads them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from envs.errors import DataFileError
from envs.sources.openapi.document_limits import check_values
from envs.sources.openapi.yaml_core import load_yaml
from envs.sources.python import tool_set_of_class, tool_set_of_functions
from envs.sources.python_folder import MAX_BYTES, read_folder
from tests.envs.sources.hostile_inputs import CLASSES, DOCUMENTS, FUNCTIONS

ROOT = Path(__file__).resolve().parents[3]
CPU_S = 15.0
"""Of one input. The slowest needs 3 s where nothing else runs; before, many needed hours."""
ALL_S = 150.0


@pytest.mark.timeout(200)
def test_every_input_is_read_or_refused_within_its_time_and_memory() -> None:
    module = "tests.envs.sources.hostile_inputs"
    with subprocess.Popen(
        [sys.executable, "-m", module], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            out, errors = process.communicate(timeout=ALL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
    told = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0, (told[-1], errors[-2_000:])
    found = {line["name"]: line for line in told if "name" in line}
    assert len(found) == len(FUNCTIONS) + len(CLASSES) + len(DOCUMENTS)
    untyped = {n: line for n, line in found.items() if line["error"] not in ("", "DataFileError")}
    assert not untyped
    slow = {name: line["seconds"] for name, line in found.items() if line["seconds"] > CPU_S}
    assert not slow
    refused = [line for line in found.values() if line["error"]]
    assert len(refused) > 25
    assert all("expected" in line["message"] for line in refused)


def test_what_cannot_be_a_default_is_none_and_the_tool_stays() -> None:
    source = 'def f(a=1j, b=[1j], c="\\ud800", d=1e999, e=(1, 2), g=[1, "x"], h={"k": None}): pass'
    [tool] = tool_set_of_functions(source).tools
    properties = tool.parameters["properties"]
    assert isinstance(properties, dict)
    defaults = {n: p["default"] for n, p in properties.items() if p and "default" in p}  # pyright: ignore
    assert defaults == {"g": [1, "x"], "h": {"k": None}}
    assert tool.parameters["required"] == []


def test_a_diamond_has_the_methods_of_all_its_classes_the_nearest_first() -> None:
    source = """
class A:
    def one(self): "of A"
    def two(self): "of A"
class B(A):
    def two(self): "of B"
class C(A):
    def two(self): "of C"
    def three(self): "of C"
class D(B, C):
    def four(self): "of D"
"""
    found = {tool.name: tool.description for tool in tool_set_of_class(source, "D").tools}
    assert found == {"four": "of D", "two": "of B", "one": "of A", "three": "of C"}


def test_merge_keys_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3}\nc: {<<: [*a, *b], x: 4}\nd: {<<: *a}\n"
    found = load_yaml(text)
    assert found["c"] == {"x": 4, "y": 2}
    assert found["d"] == {"x": 1, "y": 2}


def test_values_are_counted_with_their_aliases() -> None:
    shared = ["x" * 1_000] * 1_000
    check_values([shared] * 100)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataFileError, match="once aliases are followed"):
        check_values([shared] * 1_000)  # pyright: ignore[reportArgumentType]


def test_a_folder_of_a_long_chain_of_modules_is_read_and_an_endless_one_refused(
    tmp_path: Path,
) -> None:
    for number in range(400):
        (tmp_path / f"m{number}.py").write_text(f"import m{number + 1}\n")
    (tmp_path / "tools.py").write_text("import m0\ndef f(): pass\n")
    assert len(read_folder(tmp_path / "tools.py").modules) == 401
    for number in range(400, 600):
        (tmp_path / f"m{number}.py").write_text(f"import m{number + 1}\n")
    with pytest.raises(DataFileError, match="at most 500 modules"):
        read_folder(tmp_path / "tools.py")


def test_large_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(2**40)  # a hole: reading it would need all of the memory
    (tmp_path / "tools.py").write_text("NAME = 'data.bin'\ndef f(): pass\n")
    with pytest.raises(DataFileError, match=f"at most {MAX_BYTES} bytes"):
        read_folder(tmp_path / "tools.py")
    with (tmp_path / "tools.py").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataFileError, match="expected Python source of at most"):
        read_folder(tmp_path / "tools.py")
