"""Config sections that `envs` shares: what every task set has, and how tools are served."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

IsolationLevel = Literal["namespaces", "landlock", "seccomp", "none"]
"""Strongest first: each level has what the weaker ones have; `none` keeps the limits alone."""
SandboxProfile = Literal["compute", "files", "files+quota"]
PerturbationLevel = Literal["clean", "slight", "medium", "heavy", "union"]
"""RoTBench's names; what each does is in `envs/perturbation/levels.py`."""


class Section(BaseModel):
    """A config section: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EnvConfig(Section):
    """`[env]`: where tasks come from. The keys that every task set has; each task set adds its own
    in a subclass in its folder under `envs/tasksets/`, which also gives `name` its only value.
    """

    name: str
    """Task set, as `envs/tasksets/registry.py` lists it."""
    perturbation: PerturbationLevel = "clean"
    """How unfamiliar the tools are made: other names, words, types, distractors, faults."""
    perturbation_seed: int = Field(default=0, ge=0)
    """Random seed of the perturbation, mixed with each task's id."""

    @field_validator("name")
    @classmethod
    def _is_of_this_task_set(cls, name: str) -> str:
        expected = cls.model_fields["name"].default
        if name != expected:
            raise ValueError(f"expected env.name = {expected!r} for {cls.__name__}")
        return name


class IsolationConfig(Section):
    """`[tools.isolation]`: what tool code may do, and how strongly it is held to that."""

    required: IsolationLevel = "landlock"
    """Weakest isolation the server may start with; it takes the strongest the kernel gives."""
    profile: SandboxProfile = "compute"
    """`compute`: no file system at all; `files`: a scratch folder per session; `files+quota`: each
    session's scratch is bounded by `scratch_mib` (needs level `namespaces`).
    """
    imports: Literal["stdlib", "numpy"] = "stdlib"
    """What tool code may import: parts of the standard library, or numpy as well."""
    scratch_mib: int = Field(default=16, gt=0)
    """Size of the scratch of one session (`files+quota`), and of its largest file (`files`)."""
    unsafe: bool = False
    """Allow `required = "none"`: tool code then has every right of the server's user."""

    @model_validator(mode="after")
    def _none_is_deliberate(self) -> "IsolationConfig":
        if self.required == "none" and not self.unsafe:
            raise ValueError(
                'expected tools.isolation.unsafe = true with required = "none", found false: tool '
                "code would have every right of the server's user; set it, or require seccomp"
            )
        return self


class ToolServerConfig(Section):
    """`[tools]`: the tool servers that this run starts."""

    isolation: IsolationConfig = IsolationConfig()
    """How tool code is locked in."""
    call_timeout_s: float = Field(default=5.0, gt=0)
    """Wall seconds for one tool call; running over is an observation, not a failure."""
    long_call_share: float = Field(default=0.1, gt=0, le=1)
    """Share of the time that calls which compute for long may run while many short calls come in,
    where they would leave the server and its clients fewer than two cores; 1 lets them run."""
    session_cpu_s: int = Field(default=20, gt=0)
    """CPU seconds for one session."""
    session_memory_mib: int = Field(default=512, gt=0)
    """Address space of one session's process."""
    reply_limit_bytes: int = Field(default=65_536, gt=0)
    """Longest text that one call may answer; the rest is cut and the answer says so."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    """Deadline of the client for one request, on top of the time limits of the calls in it; running
    over is an infrastructure failure."""
    max_sessions: int = Field(default=2_048, gt=0)
    """Sessions open at once on one server; more wait for their turn."""
    max_opens: int = Field(default=8_192, gt=0)
    """Sessions being opened or waiting for their turn at once; more are refused with 503."""
    open_wait_s: float = Field(default=10.0, ge=0)
    """Longest wait of an open for another session's end; then it is refused with 503."""
    max_calls: int = Field(default=16_384, gt=0)
    """Calls under way at once on one server, over all sessions; more are refused with 503."""
    breaker_failures: int = Field(default=5, gt=0)
    """Failures of a server in a row after which its client stops asking it."""
    breaker_pause_s: float = Field(default=5.0, gt=0)
    """How long the client then fails at once, before it tries the server again."""
    session_idle_s: float = Field(default=600.0, gt=0)
    """A session without a call for so long is closed."""
    record: bool = False
    """Record every call and answer, so that `trialrun episodes replay` can play episodes again."""
    record_dir: str = ""
    """Folder of the record; a run's own default is `tool_traffic` in its directory. Servers on
    other nodes must reach it too.
    """
