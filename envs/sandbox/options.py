"""The server's options for a zygote. Standard library only: the zygote has nothing else."""

import json
from dataclasses import asdict, dataclass

_FILES_PER_MIB, _LEAST_FILES = 64, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteOptions:
    """Options of one zygote: its isolation, and what its children may import, use and write."""

    strongest: str
    """Level to try first; the zygote reports the level that it achieved."""
    required: str
    profile: str
    imports: str
    packages: str
    """Folder that holds the import profile's package; empty if it needs none."""
    further: dict[str, str]
    """Folder of each package that the user names."""
    cpu_s: int
    """CPU seconds of a child."""
    memory_mib: int
    reply_limit_bytes: int
    descriptors: int
    """Files open at once in a child."""
    scratch_mib: int
    slots: int
    """Scratch folders at once, where each has a file system of its own."""
    control: int = -1
    """Descriptor of the zygote's end of the control socket."""
    server_folder: str = ""
    """Scratch root on the server's file system, for use without a mount namespace."""

    @property
    def files(self) -> bool:
        return self.profile != "compute"

    @property
    def quota(self) -> bool:
        return self.profile == "files+quota"

    @property
    def scratch_files(self) -> int:
        """Most files and folders in one scratch."""
        return max(_LEAST_FILES, self.scratch_mib * _FILES_PER_MIB)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ZygoteOptions":
        return cls(**json.loads(text))
