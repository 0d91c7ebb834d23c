"""The upload of one run: what is new goes to the mirror, and then its head says so.

`commit` takes the small and the growing files; `send_bundles` takes checkpoints and the model,
which may take long, in another thread. Nothing here waits for the storage to recover: whoever calls
does.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rollout.mirror.head import (
    DATA,
    HEAD,
    Head,
    MirroredFile,
    Part,
    part_key,
    part_of,
    write_head,
)
from rollout.mirror.part_keys import PartKeys, size_in
from rollout.mirror.place import Place, Throttle
from rollout.mirror.snapshot import MARKER, FoundFile, complete_bundles, find_files, stamp_of
from rollout.store.regular_files import reading
from rollout.store.run_layout import RunInfo, RunLayout

GROWING_PART, WHOLE_PART = 8 * 2**20, 64 * 2**20
"""Bytes of a part. The last part of a growing file is sent again whenever the file has grown."""
Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Sent:
    stamp: Stamp
    file: MirroredFile


@dataclass(frozen=True, slots=True)
class _Bundle:
    stamps: Mapping[str, Stamp]
    """By path; a folder of the same name with other ones is another bundle."""
    files: tuple[MirroredFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """What the mirror lacks."""

    files: int = 0
    nbytes: int = 0
    bundles: tuple[str, ...] = ()
    """Checkpoints and models that are not there yet."""

    def __bool__(self) -> bool:
        return bool(self.files or self.bundles)

    @property
    def text(self) -> str:
        """In words; empty where nothing is missing."""
        parts = [f"{self.files} files"] if self.files else []
        parts += self.bundles
        return f"{', '.join(parts)} ({self.nbytes / 2**20:.1f} MiB)" if parts else ""


@dataclass(slots=True, kw_only=True)
class Uploader:
    """Brings a mirror up to date with a run directory; the claim of the mirror must be held."""

    layout: RunLayout
    place: Place
    run: RunInfo
    token: str
    now: Callable[[], float]
    """Unix seconds, which the head quotes."""
    throttle: Throttle
    head: Head | None = None
    """The mirror's head, as this uploader or an earlier one left it."""
    _sent: dict[str, _Sent] = field(default_factory=dict)
    _bundles: dict[str, _Bundle] = field(default_factory=dict)
    """Complete ones on the mirror, by their folder."""
    _keys: PartKeys = field(default_factory=PartKeys)

    def adopt(self, head: Head | None) -> None:
        """Go on from the head of an earlier process. Parts that it does not list are removed, and
        its checkpoints are compared with those of the run directory. Raises InfraError.
        """
        self.head = head
        listed = head.keys() if head else set[str]()
        stored = self.place.sizes(DATA)
        whole = {key for key, size in stored.items() if size == size_in(key)}
        self._keys.start(listed & whole, stored.keys() - listed)
        mirrored = _by_bundle(head)
        for folder in complete_bundles(self.layout):
            name = self._name(folder)
            stamps = _stamps(folder, self.layout.root)
            files = tuple(_described(path, self.layout.root) for path in stamps)
            if {f.path: f for f in mirrored.get(name, ())} == {f.path: f for f in files}:
                self._bundles[name] = _Bundle(stamps, mirrored[name])

    def commit(self) -> None:
        """Make the mirror a state of the run as it is now. Raises InfraError."""
        if self.head is not None and self.place.size(HEAD) is None:  # somebody emptied the bucket
            self.head, self._bundles, self._sent = None, {}, {}
            self._keys.start(set(), set())
        # Checkpoints before the sizes of the journals, which speak of checkpoints first.
        bundles = dict(self._bundles)
        local = {
            self._name(folder): _stamps(folder, self.layout.root)
            for folder in complete_bundles(self.layout)
        }
        found = find_files(self.layout)
        files = [file for one in found if (file := self._send(one)) is not None]
        kept = self._kept_bundles(bundles, local)
        files += [file for name in sorted(kept) for file in kept[name]]
        self._replace_head(tuple(files))

    def send_bundles(self) -> int:
        """Send the checkpoints and the model that the mirror lacks, the newest first; return how
        many. Raises InfraError.
        """
        sent = 0
        for folder in reversed(complete_bundles(self.layout)):
            name = self._name(folder)
            held = self._bundles.get(name)
            if held is None or held.stamps != _stamps(folder, self.layout.root):
                sent += self._send_bundle(folder, name)
        return sent

    def clean(self) -> None:
        """Remove what neither the head nor the one before it lists. Raises InfraError."""
        used = self.head.keys() if self.head else set[str]()
        for bundle in list(self._bundles.values()):
            used |= _keys_of(bundle.files)
        stale = self._keys.begin_removal(used)
        removed = False
        try:
            self.place.delete(sorted(stale))
            removed = True
        finally:
            self._keys.end_removal(done=removed)

    def behind(self) -> Behind:
        """Return what the run directory has and the head does not."""
        listed = self.head.by_path if self.head else {}
        missing = [
            one.size - listed[one.path].size if one.path in listed and one.grows else one.size
            for one in find_files(self.layout)
            if not self._is_current(one, listed.get(one.path))
        ]
        nbytes, names = sum(n for n in missing if n > 0), list[str]()
        for folder in complete_bundles(self.layout):
            stamps = _stamps(folder, self.layout.root)
            held = self._bundles.get(self._name(folder))
            if held is None or held.stamps != stamps or held.files[0].path not in listed:
                names.append(self._name(folder))
                nbytes += sum(size for size, _, _ in stamps.values())
        return Behind(files=len(missing), nbytes=nbytes, bundles=tuple(names))

    def _is_current(self, one: FoundFile, listed: MirroredFile | None) -> bool:
        sent = self._sent.get(one.path)
        return listed is not None and sent is not None and sent.stamp == one.stamp

    def _send(self, one: FoundFile) -> MirroredFile | None:
        """Send what is new of a file; None where it is gone."""
        sent = self._sent.get(one.path)
        if sent is not None and sent.stamp == one.stamp:
            return sent.file
        try:
            with reading(self.layout.root / one.path) as file:
                parts = self._growing(one, file) if one.grows else self._parts(file, one.path, "")
        except FileNotFoundError:
            return None
        mirrored = MirroredFile(path=one.path, parts=tuple(parts))
        self._sent[one.path] = _Sent(one.stamp, mirrored)
        return mirrored

    def _growing(self, one: FoundFile, file: BinaryIO) -> list[Part]:
        """Send the end of a file that has grown. Where it has shrunk, all of it is looked at."""
        before = self._sent.get(one.path)
        parts = list(before.file.parts) if before is not None else []
        kept = [part for part in parts if part.size == GROWING_PART]
        if sum(part.size for part in parts) > one.size:
            kept = []
        start = len(kept) * GROWING_PART
        file.seek(start)
        lines = one.path.endswith(".jsonl")
        return kept + self._pieces(file, one.path, start, one.size, lines=lines)

    def _pieces(
        self, file: BinaryIO, path: str, start: int, end: int, *, lines: bool
    ) -> list[Part]:
        parts: list[Part] = []
        while start < end and (content := file.read(min(GROWING_PART, end - start))):
            if lines and len(content) < GROWING_PART:  # a line that is being written stays out
                content = content[: content.rfind(b"\n") + 1]
            if not content:
                break
            parts.append(self._put(path, start, content, ""))
            start += len(content)
            if len(content) < GROWING_PART:
                break
        return parts

    def _parts(self, file: BinaryIO, path: str, owner: str) -> list[Part]:
        parts, start = list[Part](), 0
        while content := file.read(WHOLE_PART):
            parts.append(self._put(path, start, content, owner))
            start += len(content)
        return parts

    def _put(self, path: str, start: int, content: bytes, owner: str) -> Part:
        part = part_of(content)
        key = part_key(path, start, part)
        if not self._keys.use(key, owner):
            self.place.write(key, content, self.throttle)
            self._keys.add(key)
        return part

    def _send_bundle(self, folder: Path, name: str) -> bool:
        """Send a folder as it is now; return whether it is complete. Its files are opened first:
        retention may remove them meanwhile.
        """
        with ExitStack() as opened:
            before = _stamps(folder, self.layout.root)
            self._keys.begin_bundle(name)
            try:
                files = {
                    path: opened.enter_context(reading(self.layout.root / path))
                    for path in sorted(before, key=lambda path: path.endswith(f"/{MARKER}"))
                }
            except OSError:  # it is being removed, or replaced
                return False
            if not files or _stamps(folder, self.layout.root) != before:
                return False
            self._bundles[name] = _Bundle(
                before,
                tuple(
                    MirroredFile(path=path, parts=tuple(self._parts(file, path, name)))
                    for path, file in files.items()
                ),
            )
        return True

    def _kept_bundles(
        self, bundles: Mapping[str, _Bundle], local: Mapping[str, Mapping[str, Stamp]]
    ) -> dict[str, tuple[MirroredFile, ...]]:
        """Return the bundles that the head is to list: those that the run directory has, and until
        the mirror has a newer checkpoint or the model, the newest that it had before.
        """
        kept = {
            name: bundle.files
            for name, bundle in bundles.items()
            if local.get(name) == bundle.stamps
        }
        before = _by_bundle(self.head)
        gone = {name: before[name] for name in before if name not in local}
        for name in gone:
            if not any(_is_newer(other, name) for other in (*kept, *gone)):
                kept[name] = gone[name]
        for name in bundles.keys() - kept.keys():
            if self._bundles.get(name) is bundles[name]:
                del self._bundles[name]
                self._keys.discard(_keys_of(bundles[name].files))
        return kept

    def _replace_head(self, files: tuple[MirroredFile, ...]) -> None:
        before = self.head
        if before is None or before.files != files or before.token != self.token:
            self.head = Head(
                run=self.run.run,
                created_at=self.run.created_at,
                sequence=before.sequence + 1 if before else 1,
                at=self.now(),
                token=self.token,
                files=files,
            )
            write_head(self.place, self.head)
        self.clean()
        self._keys.discard((before.keys() if before else set()) - _keys_of(files))
        self._keys.end_files()

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.layout.root).as_posix()


def _keys_of(files: Iterable[MirroredFile]) -> set[str]:
    return {key for file in files for key in file.part_keys()}


def _described(path: str, root: Path) -> MirroredFile:
    """Return a file of a bundle as it would be mirrored; without parts where it is gone."""
    parts: list[Part] = []
    try:
        with reading(root / path) as file:
            while content := file.read(WHOLE_PART):
                parts.append(part_of(content))
    except OSError:
        parts = []
    return MirroredFile(path=path, parts=tuple(parts))


def _stamps(folder: Path, root: Path) -> dict[str, Stamp]:
    """Return the files of a bundle, with what tells their content."""
    try:
        return dict(_stamped(folder, root))
    except OSError:  # it is being removed
        return {}


def _stamped(folder: Path, root: Path) -> Iterator[tuple[str, Stamp]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield path.relative_to(root).as_posix(), stamp_of(path.stat())


def _by_bundle(head: Head | None) -> dict[str, tuple[MirroredFile, ...]]:
    found: dict[str, tuple[MirroredFile, ...]] = {}
    for file in head.files if head else ():
        parts = PurePosixPath(file.path).parts
        depth = {"checkpoints": 2, "model": 1}.get(parts[0])
        if depth is not None and len(parts) > depth:
            name = "/".join(parts[:depth])
            found[name] = (*found.get(name, ()), file)
    return found


def _is_newer(other: str, name: str) -> bool:
    """Whether the bundle `other` makes the checkpoint `name` dispensable."""
    if name == "model":  # it was removed
        return True
    return other == "model" or int(other.rpartition("/")[2]) > int(name.rpartition("/")[2])
