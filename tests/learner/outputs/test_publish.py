"""Publishing: what is written is what a receiver reads, and nothing wrong is published."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from envs.errors import WeightSyncError
from learner.outputs.publish import SharedMemoryPublisher
from rollout.weights.manifest import TensorSlot, WeightLayout, WeightManifest, checksum

LAYOUT = WeightLayout.of(
    [("embed.weight", "bfloat16", (5, 3), 30), ("layers.0.weight", "bfloat16", (4,), 8)]
)


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        slot.name: torch.randn(slot.shape, generator=generator, requires_grad=True)
        for slot in LAYOUT.slots
    }


def read(manifest: WeightManifest, slot: TensorSlot) -> torch.Tensor:
    content = bytearray(Path(manifest.path).read_bytes())
    flat = torch.frombuffer(content, dtype=torch.uint8)[slot.offset : slot.offset + slot.nbytes]
    return flat.view(getattr(torch, slot.dtype)).view(slot.shape)


@pytest.fixture
def publisher(tmp_path: Path) -> SharedMemoryPublisher:
    return SharedMemoryPublisher(tmp_path, LAYOUT)


def test_tensors_arrive_cast_to_the_layout(publisher: SharedMemoryPublisher) -> None:
    sent = weights(1)
    manifest = publisher.publish(7, reversed(sent.items()))
    assert (manifest.version, manifest.transport, manifest.layout) == (7, "shm", LAYOUT)
    for slot in LAYOUT.slots:
        assert torch.equal(read(manifest, slot), sent[slot.name].to(torch.bfloat16))
    content = Path(manifest.path).read_bytes()
    assert manifest.checksum == checksum(memoryview(content)[: LAYOUT.nbytes])


def test_two_files_alternate(publisher: SharedMemoryPublisher) -> None:
    manifests = [publisher.publish(version, weights(version).items()) for version in (1, 2, 3)]
    assert manifests[0].path == manifests[2].path != manifests[1].path
    assert len({manifest.checksum for manifest in manifests}) == 3
    slot = LAYOUT.slots[0]
    assert torch.equal(read(manifests[1], slot), weights(2)[slot.name].to(torch.bfloat16))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"embed.weight": None}, r"1 missing.*embed\.weight"),
        ({"lm_head.weight": torch.zeros(5, 3)}, r"lm_head\.weight beyond"),
        ({"layers.0.weight": torch.zeros(2, 2)}, r"layers\.0\.weight of shape \(4,\).*\(2, 2\)"),
    ],
)
def test_a_wrong_tensor_is_named_and_the_last_version_survives(
    publisher: SharedMemoryPublisher, change: dict[str, torch.Tensor | None], complaint: str
) -> None:
    good = publisher.publish(1, weights(1).items())
    before = Path(good.path).read_bytes()
    bad = {name: tensor for name, tensor in (weights(2) | change).items() if tensor is not None}
    with pytest.raises(WeightSyncError, match=complaint):
        publisher.publish(2, bad.items())
    assert Path(good.path).read_bytes() == before
    assert publisher.publish(2, weights(2).items()).path != good.path


def test_a_tensor_sent_twice_is_refused(publisher: SharedMemoryPublisher) -> None:
    with pytest.raises(WeightSyncError, match=r"embed\.weight beyond"):
        publisher.publish(1, [*weights(1).items(), ("embed.weight", torch.zeros(5, 3))])


def test_tensors_that_never_change_are_in_every_version(tmp_path: Path) -> None:
    kept, sent = LAYOUT.slots
    carried = torch.arange(15.0).view(kept.shape)
    publisher = SharedMemoryPublisher(tmp_path, LAYOUT, [(kept.name, carried)])
    for version in (1, 2, 3):
        new = torch.full(sent.shape, float(version))
        manifest = publisher.publish(version, [(sent.name, new)])
        assert torch.equal(read(manifest, kept).float(), carried)
        assert torch.equal(read(manifest, sent).float(), new)
    with pytest.raises(WeightSyncError, match=r"embed\.weight beyond"):
        publisher.publish(4, weights(4).items())
    publisher.close()


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_close_removes_the_files(tmp_path: Path) -> None:
    publisher = SharedMemoryPublisher(tmp_path, LAYOUT)
    publisher.publish(1, weights(1).items())
    assert len(files_in(tmp_path)) == 2
    publisher.close()
    assert not files_in(tmp_path)


def test_a_killed_run_is_reclaimed_and_a_living_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "of-someone-else").touch()
    living = SharedMemoryPublisher(tmp_path, LAYOUT)
    kept = files_in(tmp_path)
    child = os.fork()
    if child == 0:
        doomed = SharedMemoryPublisher(tmp_path, LAYOUT)
        os.kill(os.getpid(), signal.SIGKILL)
        doomed.close()
    os.waitpid(child, 0)
    assert len(files_in(tmp_path)) == 5
    SharedMemoryPublisher(tmp_path, LAYOUT).close()
    assert files_in(tmp_path) == kept
    living.close()


def test_no_room_is_an_error_before_training_starts(tmp_path: Path) -> None:
    beyond = WeightLayout.of([("w", "float32", (1 << 60,), 1 << 62)])
    with pytest.raises(
        WeightSyncError, match=rf"room for two buffers.*Errno ({errno.EFBIG}|{errno.ENOSPC})"
    ):
        SharedMemoryPublisher(tmp_path, beyond)
    assert not files_in(tmp_path)
