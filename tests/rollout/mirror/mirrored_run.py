"""A run whose steps are made up, and its mirror in a folder: what the tests of mirrors share."""

import os
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from rollout.episode import Lease
from rollout.episode_schema import to_batch
from rollout.mirror.address import parse_address
from rollout.mirror.download import fetch_files
from rollout.mirror.head import read_head
from rollout.mirror.place import Place
from rollout.mirror.upload import Uploader
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunLayout
from rollout.store.run_reader import RunReader
from rollout.store.shared_files import remove_folder
from tests.rollout.conftest import lease_in, make_episode

RUN = RunInfo(run="unit", seed=0, created_at=1.5)
GROUP = 4
"""Episodes of a group; each step trains one group."""


def nothing_to_wait_for(nbytes: int) -> None:
    return None


def place_in(folder: Path) -> Place:
    return Place(parse_address(f"file://{folder}/mirrors/unit"))


def uploader(run: RunDirectory | RunLayout, place: Place, token: str = "t1") -> Uploader:
    layout = run if isinstance(run, RunLayout) else run.layout
    found = Uploader(
        layout=layout,
        place=place,
        run=RUN,
        token=token,
        now=lambda: 5.0,
        throttle=nothing_to_wait_for,
    )
    found.adopt(read_head(place))
    return found


def mirror_all(upload: Uploader) -> None:
    upload.send_bundles()
    upload.commit()


def fetch(place: Place, folder: Path) -> RunReader:
    """Return a reader of everything that the mirror holds now, fetched to a fresh folder."""
    head = read_head(place)
    assert head is not None
    target = next(path for n in count() if not (path := folder / f"fetched-{n}").exists())
    fetch_files(place, head, target, lambda path: True)
    for inner in RunLayout(target).folders:
        inner.mkdir(exist_ok=True)
    return RunReader(target)


def new_run(path: Path) -> RunDirectory:
    return RunDirectory.create(path, "[run]\nname = 'unit'\n", RUN)


def save_checkpoint(layout: RunLayout, step: int, nbytes: int = 1_000) -> Path:
    """Write a checkpoint as the learner does: under another name, renamed when it is complete."""
    target = layout.checkpoints / f"{step:06d}"
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir()
    (partial / "rank-0.bin").write_bytes(os.urandom(nbytes))
    (partial / "complete").write_text(f'{{"step": {step}}}')
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    return target


def play(run: RunDirectory, leases: Sequence[Lease], tokens: int = 12) -> None:
    """Store the episodes of some leases, and finish them."""
    for lease in leases:
        run.append(to_batch([make_episode(lease=lease, tokens=tokens)]))
        run.ledger.finish(lease)


def go_on(run: RunDirectory, until: int, *, every: int = 2, tokens: int = 12) -> None:
    """Make the steps up to `until`, from where the run is, as training does: a group per step."""
    for step in range(max(run.ledger.last_step, 0) + 1, until + 1):
        if not run.ledger.ready_groups():
            opened = run.ledger.open_leases()
            play(run, [run.ledger.re_lease(one.episode, "resumed") for one in opened], tokens)
        if not run.ledger.ready_groups():
            group = f"g{len(run.ledger.groups):06d}"
            leases = [lease_in(group, index) for index in range(GROUP)]
            run.ledger.lease(leases)
            play(run, leases, tokens)
        run.ledger.train(step, run.ledger.ready_groups()[0].episodes)
        run.sync()
        run.record_metrics(step, {"loss": 1 / step})
        if step % every == 0:
            save_checkpoint(run.layout, step)
            for path in sorted(run.layout.checkpoints.glob("[0-9]*"))[:-2]:
                remove_folder(path)


def check_invariants(reader: RunReader, steps: int) -> None:
    """Every step trained one whole group, no group twice, and every episode of it is stored."""
    state = reader.ledger()
    assert state.audit().violations == ()
    trained = {name: entry for name, entry in state.entries.items() if entry.step is not None}
    by_step = {step: 0 for step in range(1, steps + 1)}
    for entry in trained.values():
        assert entry.step is not None
        by_step[entry.step] += 1
    assert by_step == dict.fromkeys(range(1, steps + 1), GROUP)
    stored = {(row.episode, row.attempt) for row in reader.episodes()}
    assert {(name, entry.lease.attempt) for name, entry in trained.items()} <= stored
