"""Copies of published weights on nodes other than the learner's, sent through Ray's object store.

Within a node, weights are files of shared memory that every engine maps. For workers on another
node, an actor there writes the same files. A version is copied to each place once, in parts,
however many workers load it there. Nodes need no connection other than Ray's own.
"""

import asyncio
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.fleet.ray_errors import RemoteCall, answer_of
from envs.errors import WeightSyncError
from rollout.weights.files import WeightFiles
from rollout.weights.manifest import Place, WeightManifest

PART_BYTES = 32 * 2**20
_PARTS_AT_ONCE = 2
"""Parts in transfer to one node: one is read and sent while the previous one is written."""
_PARTS_KEPT = 4
"""Parts that stay in the object store, for nodes that copy the same version at the same time."""
_ATTEMPTS = 2
"""The second one uses new actors, in case one had died before the first."""
_CLOSE_S = 10.0


def place_here(shm_dir: str) -> Place:
    """Return the place of weight files for this process. Raises WeightSyncError."""
    return Place.of(shm_dir, ray.get_runtime_context().get_node_id())


class RelayActor:
    """Ray actor on one node: reads versions that were published there, or writes copies."""

    def __init__(self, shm_dir: str) -> None:
        self._directory = Path(shm_dir)
        self._nbytes = -1
        self._files: WeightFiles | None = None

    def read(self, path: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return bytes `start` to `stop` of a published file. Raises WeightSyncError."""
        try:
            return np.asarray(np.memmap(path, np.uint8, "r", start, (stop - start,)))
        except (OSError, ValueError) as error:
            raise WeightSyncError(f"could not read {path}: {error}") from error

    def begin(self, nbytes: int) -> str:
        """Reserve the file of a new version and return its path.

        It replaces the version before the previous one. Raises WeightSyncError for lack of memory.
        """
        if self._files is None or nbytes != self._nbytes:
            self.close()
            self._files, self._nbytes = WeightFiles(self._directory, nbytes), nbytes
        return str(self._files.next.path)

    def write(self, start: int, part: NDArray[np.uint8]) -> None:
        """Write a part of the new version, from byte `start` on."""
        assert self._files is not None, "begin comes first"
        np.frombuffer(self._files.next.map, np.uint8)[start : start + part.nbytes] = part

    def end(self) -> None:
        """Complete the new version; the next one goes into the other file."""
        assert self._files is not None, "begin comes first"
        self._files.turn()

    def close(self) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None


@dataclass(frozen=True, slots=True)
class _Copy:
    """A version that is being copied, or was copied, to a node."""

    manifest: WeightManifest
    path: asyncio.Task[str]

    def is_of(self, manifest: WeightManifest) -> bool:
        return self.manifest == manifest and not (
            self.path.done() and (self.path.cancelled() or self.path.exception())
        )


class WeightRelays:
    """Copies published versions to the nodes where workers load them; lives in the driver.

    Starts no actor before a worker runs on another node than the publisher. A copy fails after
    `timeout_s`.
    """

    def __init__(self, shm_dir: str, timeout_s: float) -> None:
        self.shm_dir = shm_dir
        self._timeout_s = timeout_s
        self._actors: dict[str, Any] = {}
        self._homes: dict[str, str] = {}
        """Node of the actor that writes, by folder: several nodes may share a folder."""
        self._copies: dict[str, _Copy] = {}
        self._copying: set[asyncio.Task[str]] = set()
        self._busy: dict[str, asyncio.Lock] = {}
        self._parts: OrderedDict[tuple[str, str, int], Any] = OrderedDict()

    async def at(self, place: Place, manifest: WeightManifest) -> WeightManifest:
        """Return a manifest of the same version that engines at `place` can load.

        Copies the version there unless that is done already. Raises WeightSyncError.
        """
        if manifest.place is None or manifest.place.folder == place.folder:
            return manifest
        if manifest.transport != "shm":
            raise WeightSyncError(
                "expected cluster.transport 'shm' for a worker on another node than the learner, "
                f"found {manifest.transport!r}, which needs the learner's own GPU"
            )
        copy = self._copies.get(place.folder)
        if copy is None or not copy.is_of(manifest):
            task = asyncio.create_task(self._copied(manifest, manifest.place.node, place))
            self._copying.add(task)
            task.add_done_callback(self._copying.discard)
            copy = self._copies[place.folder] = _Copy(manifest, task)
        # Shielded: other workers wait for the same copy, so a cancelled caller must not end it.
        return replace(manifest, path=await asyncio.shield(copy.path), place=place)

    async def close(self) -> None:
        """End the actors and remove their files."""
        for task in self._copying:
            task.cancel()
        await asyncio.gather(*self._copying, return_exceptions=True)
        self._parts.clear()
        closing = [actor.close.remote() for actor in self._actors.values()]
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*closing, return_exceptions=True)
        for node in list(self._actors):
            self._drop(node)

    def forget(self, place: Place) -> None:
        """Make the next call for `place` copy again: an engine could not load the copy there."""
        self._copies.pop(place.folder, None)

    async def _copied(self, manifest: WeightManifest, source: str, place: Place) -> str:
        async with self._busy.setdefault(place.folder, asyncio.Lock()):
            reason = ""
            for _ in range(_ATTEMPTS):
                node = self._homes.setdefault(place.folder, place.node)
                call = RemoteCall(
                    name=f"copy to node {node}",
                    failure=WeightSyncError,
                    timeout_s=self._timeout_s,
                )
                try:
                    return await answer_of(self._copy(manifest, source, node), call)
                except WeightSyncError as error:
                    reason = str(error)
                self._parts.clear()  # some may belong to a reader that failed
                self._drop(source)
                self._drop(node)
                del self._homes[place.folder]
            raise WeightSyncError(
                f"version {manifest.version} was not copied to node {place.node}: {reason}"
            )

    async def _copy(self, manifest: WeightManifest, source: str, node: str) -> str:
        target, nbytes = self._actor(node), manifest.layout.nbytes
        path = await target.begin.remote(nbytes)
        writing: deque[Any] = deque()
        for start in range(0, nbytes, PART_BYTES):
            part = self._part(manifest, source, start, min(start + PART_BYTES, nbytes))
            writing.append(target.write.remote(start, part))
            if len(writing) == _PARTS_AT_ONCE:
                await writing.popleft()
        await asyncio.gather(*writing)
        await target.end.remote()
        return path

    def _part(self, manifest: WeightManifest, source: str, start: int, stop: int) -> Any:
        """Return a reference to a part, which is read on the publisher's node."""
        key = (manifest.path, manifest.checksum, start)
        if key not in self._parts:
            self._parts[key] = self._actor(source).read.remote(manifest.path, start, stop)
        self._parts.move_to_end(key)
        while len(self._parts) > _PARTS_KEPT:
            self._parts.popitem(last=False)
        return self._parts[key]

    def _actor(self, node: str) -> Any:
        if node not in self._actors:
            remote: Any = ray.remote(RelayActor)
            self._actors[node] = remote.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(self.shm_dir)
        return self._actors[node]

    def _drop(self, node: str) -> None:
        actor = self._actors.pop(node, None)
        if actor is not None:
            ray.kill(actor)
