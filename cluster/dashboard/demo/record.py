"""How the recording of `trialrun dashboard --demo` is made: from the runs of `make demo`.

    make demo
    python -m cluster.dashboard.demo.record runs/demo

It keeps the first steps of the training and the first tasks of two evaluations, with their ledgers
and annotations, as they were stored, and packs them into `runs.tar.xz` beside this file. Paths and
the name of the machine are left out.
"""

import argparse
import io
import json
import lzma
import shutil
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from rollout.episode_schema import EPISODE_SCHEMA
from rollout.store.journal import plain_lines
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import RunReader
from rollout.store.segments import EpisodeRow, SegmentWriter

ARCHIVE = Path(__file__).parent / "runs.tar.xz"
STEPS = 5
TASKS = 40
TRAINING = "train"
EVALUATIONS = ("eval-trial-sft-t1", "eval-trial-sft-grpo-t1")
_AT_ONCE = 256


def record(source: Path, target: Path) -> None:
    """Write the shortened runs of `source` to the new folder `target`."""
    _shorten(source / TRAINING, target / TRAINING, _lines_of_training(source / TRAINING))
    for name in EVALUATIONS:
        _shorten(source / name, target / name, _lines_of_evaluation(source / name))
        shutil.copy(source / name / "eval.json", target / name / "eval.json")
        _clean(target / name / "eval.json", _base(source / name))


def pack(folder: Path, archive: Path) -> None:
    """Pack `folder`, the same bytes each time: without times and owners."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                info = tarfile.TarInfo(path.relative_to(folder).as_posix())
                info.size = path.stat().st_size
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(path.read_bytes()))
    archive.write_bytes(lzma.compress(content.getvalue(), preset=9))


def _lines_of_training(run: Path) -> list[bytes]:
    """Return the ledger up to the end of the last step that is kept."""
    found: list[bytes] = []
    for line in plain_lines(RunLayout(run).ledger):
        found.append(line)
        event = json.loads(line)
        if event["event"] == "trained" and event["step"] == STEPS:
            return found
    raise SystemExit(f"{run} has no step {STEPS}")


def _lines_of_evaluation(run: Path) -> list[bytes]:
    """Return the ledger's lines about the first tasks."""
    groups: list[str] = []
    kept: set[str] = set()
    found: list[bytes] = []
    for line in plain_lines(RunLayout(run).ledger):
        event = json.loads(line)
        if event["event"] == "leased" and len(groups) < TASKS:
            groups.append(event["group"])
            kept |= {sample["episode"] for sample in event["samples"]}
            found.append(line)
        elif event.get("episode") in kept:
            found.append(line)
        elif event["event"] == "dropped":
            inner = [name for name in event["episodes"] if name in kept]
            if inner:
                found.append(json.dumps({**event, "episodes": inner}).encode())
    return found


def _shorten(source: Path, target: Path, ledger: Sequence[bytes]) -> None:
    old, new = RunLayout(source), RunLayout(target)
    for folder in new.folders:
        folder.mkdir(parents=True)
    for name in ("run.json", "config.toml"):
        shutil.copy(source / name, target / name)
        _clean(target / name, _base(source))
    if (old.model / "tokenizer.json").exists():
        new.model.mkdir()
        shutil.copy(old.model / "tokenizer.json", new.model / "tokenizer.json")
    new.ledger.write_bytes(b"".join(line + b"\n" for line in ledger))
    metrics = plain_lines(old.metrics)[:STEPS]
    new.metrics.write_bytes(b"".join(line + b"\n" for line in metrics))
    new.manifest.write_text('{"event": "segment", "segment": "000001"}\n')
    for step in range(1, STEPS + 1):
        if old.annotations(step).exists():
            shutil.copy(old.annotations(step), new.annotations(step))
    reader = RunReader(source)
    kept = {name for line in ledger for name in _episodes(json.loads(line))}
    rows = [row for row in reader.episodes() if row.episode in kept]
    writer = SegmentWriter(new.episodes, new.index, "000001")
    for batch in _batches(reader, rows):
        writer.append(batch)
    writer.close()


def _batches(reader: RunReader, rows: Sequence[EpisodeRow]) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), _AT_ONCE):
        batch = reader.batch(list(rows[start : start + _AT_ONCE]))
        servers = [text and f"node/{text.rpartition('/')[2]}" for text in
                   batch.column("tool_server").to_pylist()]  # fmt: skip
        columns = [
            pa.array(servers) if name == "tool_server" else batch.column(name)
            for name in EPISODE_SCHEMA.names
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=EPISODE_SCHEMA)


def _episodes(event: dict[str, object]) -> list[str]:
    named = event.get("episodes")
    if isinstance(named, list):
        return named
    return [str(event["episode"])] if event["event"] == "finished" else []


def _clean(path: Path, base: str) -> None:
    """Leave out where the runs were made."""
    path.write_text(path.read_text().replace(f"{base}/", ""))


def _base(run: Path) -> str:
    """Return the folder in which `make demo` was typed."""
    recipe = tomllib.loads((run / "config.toml").read_text())
    return str(Path(recipe["run"]["models_dir"]).parent)


def main() -> None:
    """Record and say how large the archive is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="Folder of the runs of `make demo`.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record(options.source, Path(folder))
        pack(Path(folder), ARCHIVE)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
