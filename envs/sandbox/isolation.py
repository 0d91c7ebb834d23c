"""The isolation that a sandbox achieved, as `/health` shows it and every episode records it."""

from pydantic import BaseModel, ConfigDict

from envs.config import IsolationLevel, SandboxProfile

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 2.0
"""A session whose process has ended waits for another one, from the second time on."""
LONGEST_RESTART_S = LONGEST_PAUSE_S + 3.0
"""With the end of the old process and the start of the new one, on a busy machine."""


class SessionLimits(BaseModel):
    """Resource limits of one session; exceeding one fails inside the session's own process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cpu_s: int
    memory_mib: int
    """Address space of the session's process."""
    reply_bytes: int
    """Longest text of one answer, in UTF-8 bytes."""
    files: int
    """Descriptors open at once, including the session's own socket and standard streams."""
    processes: int = 1
    """Processes and threads."""
    scratch_mib: int = 0
    """Size of the complete scratch; 0: no files."""


class IsolationReport(BaseModel):
    """How the sessions of one server are isolated.

    `refusals` maps each mechanism that the kernel did not provide to the reason. `hash_seed` is the
    value of `PYTHONHASHSEED`. It is the same for all sessions, because a forked interpreter cannot
    change it; `random` and numpy are seeded per session.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: IsolationLevel
    profile: SandboxProfile
    imports: str
    landlock: int
    """ABI version of the Landlock in force; 0 if there is none."""
    kernel: str
    machine: str
    hash_seed: int
    limits: SessionLimits
    refusals: dict[str, str] = {}

    @property
    def summary(self) -> str:
        """Return the `isolation` text of sessions and episodes: one short line."""
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
