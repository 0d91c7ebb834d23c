"""What a sandbox achieved: the statement that `/health` carries and every episode records."""

from pydantic import BaseModel, ConfigDict

from envs.config import IsolationLevel, SandboxProfile


class SessionLimits(BaseModel):
    """What one session may use; whatever it tries beyond that fails inside its own process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cpu_s: int
    memory_mib: int
    """Address space of the session's process."""
    reply_bytes: int
    """Longest text of one answer."""
    files: int
    """Descriptors open at once, the session's own socket and standard streams included."""
    processes: int = 1
    """Processes and threads."""
    scratch_mib: int = 0
    """Size of one file (profile `files`) or of the whole scratch (`files+quota`); 0: no files."""


class IsolationReport(BaseModel):
    """How the sessions of one server are locked in. `refusals`: what the kernel gave not, and why.

    `hash_seed` is that of `PYTHONHASHSEED`: one for all sessions, for a forked interpreter cannot
    change it; `random` and numpy are seeded per session.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: IsolationLevel
    profile: SandboxProfile
    imports: str
    landlock: int
    """ABI version of the Landlock in force; 0 where there is none."""
    kernel: str
    machine: str
    hash_seed: int
    limits: SessionLimits
    refusals: dict[str, str] = {}

    @property
    def summary(self) -> str:
        """The `isolation` of sessions and episodes: one short line without line breaks."""
        parts = [f"{self.level}/{self.profile}"]
        if self.imports != "stdlib":
            parts.append(f"imports={self.imports}")
        parts += [
            f"landlock={self.landlock}",
            f"cpu={self.limits.cpu_s}s",
            f"mem={self.limits.memory_mib}MiB",
        ]
        if self.limits.scratch_mib:
            parts.append(f"scratch={self.limits.scratch_mib}MiB")
        return " ".join(parts)
