"""Blocks of commands in README, CONTRIBUTING and docs/, and what is said about running them."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.project_tree import ROOT

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^>]*?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_COMMAND = re.compile(r"(?:\S*/)?(trialrun|make|python|ray)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of shell commands; `mark` is the HTML comment above it."""

    page: Path
    line: int
    mark: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether the tests execute it."""
        return self.mark == "run"

    @property
    def is_marked(self) -> bool:
        """Whether it says that it runs, or what it needs."""
        return self.runs or self.mark.startswith("needs: ")

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of each command, without comments and `NAME=value` before it."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def run_blocks(found: Sequence[Block], folder: Path, limit_s: float) -> str:
    """Run blocks in their order in `folder`, as a reader would, and return their output."""
    script = "set -euo pipefail\n" + "\n".join(block.text for block in found)
    programs = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-xc", script],
        cwd=folder,
        env={**os.environ, "PATH": programs},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-8000:]
    return ended.stdout


def blocks() -> list[Block]:
    """Return every block of commands of every page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            shell = match["kind"] in ("bash", "sh", "shell", "console")
            body = match["text"]
            first = body.split(None, 1)[0] if body.strip() else ""
            if shell or (not match["kind"] and _COMMAND.match(first)):
                line = text.count("\n", 0, match.start("text"))
                found.append(Block(page, line, match["mark"] or "", body))
    return found
