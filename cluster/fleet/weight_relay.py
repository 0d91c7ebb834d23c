"""Published weights on other nodes than their publisher's, carried by Ray's object store.

Within a node weights are files of shared memory that every engine maps. For workers that do not see
these, an actor on their node keeps such files too: a version is copied to a place once, part by
part, however many workers load it there. Nodes need no connection but Ray's own.
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
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from envs.errors import WeightSyncError
from rollout.weights.files import WeightFiles
from rollout.weights.manifest import Place, WeightManifest

PART_BYTES = 32 * 2**20
_PARTS_AT_ONCE = 2
"""Parts on their way to one node: one is read and sent while the one before it is written."""
_PARTS_KEPT = 4
"""Parts that stay in the object store, for nodes that copy the same version side by side."""
_ATTEMPTS = 2
"""The second with new actors: one that died is noticed by the first."""
_CLOSE_S = 10.0


def place_here(shm_dir: str) -> Place:
    """Return where weights lie for this process. Raises WeightSyncError."""
    return Place.of(shm_dir, ray.get_runtime_context().get_node_id())


class RelayActor:
    """One node's end: reads parts of what was published here, or writes parts from elsewhere."""

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
        """Make room for a version, in place of the last but one, and return the path of its file.

        Raises WeightSyncError where there is no room.
        """
        if self._files is None or nbytes != self._nbytes:
            self.close()
            self._files, self._nbytes = WeightFiles(self._directory, nbytes), nbytes
        return str(self._files.next.path)

    def write(self, start: int, part: NDArray[np.uint8]) -> None:
        """Write the bytes from `start` on of the version that was begun."""
        assert self._files is not None, "begin comes first"
        np.frombuffer(self._files.next.map, np.uint8)[start : start + part.nbytes] = part

    def end(self) -> None:
        """Keep the version that was begun until another one was written after it."""
        assert self._files is not None, "begin comes first"
        self._files.turn()

    def close(self) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None


@dataclass(frozen=True, slots=True)
class _Copy:
    """A version on its way to a node."""

    manifest: WeightManifest
    path: asyncio.Task[str]

    def is_of(self, manifest: WeightManifest) -> bool:
        return self.manifest == manifest and not (
            self.path.done() and (self.path.cancelled() or self.path.exception())
        )


class WeightRelays:
    """The driver's: brings published versions to the nodes where workers load them.

    Starts no actor before there is a worker on another node than the publisher's. A copy that is
    not done after `timeout_s` is given up.
    """

    def __init__(self, shm_dir: str, timeout_s: float) -> None:
        self.shm_dir = shm_dir
        self._timeout_s = timeout_s
        self._actors: dict[str, Any] = {}
        self._homes: dict[str, str] = {}
        """Node of the actor that writes, by folder: several nodes may see one."""
        self._copies: dict[str, _Copy] = {}
        self._copying: set[asyncio.Task[str]] = set()
        self._busy: dict[str, asyncio.Lock] = {}
        self._parts: OrderedDict[tuple[str, str, int], Any] = OrderedDict()

    async def at(self, place: Place, manifest: WeightManifest) -> WeightManifest:
        """Return `manifest` as engines that see `place` can load it, copied there once.

        Raises WeightSyncError where it does not get there.
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
        return replace(manifest, path=await asyncio.shield(copy.path), place=place)

    async def close(self) -> None:
        """End the actors; their files go with them."""
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
        """Copy again what is asked for next at `place`: an engine could not load what is there."""
        self._copies.pop(place.folder, None)

    async def _copied(self, manifest: WeightManifest, source: str, place: Place) -> str:
        async with self._busy.setdefault(place.folder, asyncio.Lock()):
            reason = ""
            for _ in range(_ATTEMPTS):
                node = self._homes.setdefault(place.folder, place.node)
                try:
                    async with asyncio.timeout(self._timeout_s):
                        return await self._copy(manifest, source, node)
                except TimeoutError:
                    reason = f"not done after {self._timeout_s:g} s"
                except RayTaskError as error:
                    reason = str(error.cause)
                except RayError as error:
                    reason = str(error).splitlines()[0]
                self._parts.clear()  # some may be of a reader that failed
                self._drop(source)
                self._drop(node)
                del self._homes[place.folder]
            raise WeightSyncError(
                f"version {manifest.version} did not get to node {place.node}: {reason}"
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
        """Return a reference to a part, read where it was published."""
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
