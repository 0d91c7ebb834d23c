"""Shared config sections of `envs`: keys of every task set, and how tools are served."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

IsolationLevel = Literal["namespaces", "landlock", "seccomp", "none"]
"""Strongest first. Each level includes the weaker ones; `none` applies only the resource limits."""
SandboxProfile = Literal["compute", "files", "files+quota"]
PerturbationLevel = Literal["clean", "slight", "medium", "heavy", "union"]
"""RoTBench's names; `envs/perturbation/levels.py` defines each level."""


class Section(BaseModel):
    """A config section: immutable; an unknown key or a number that is not finite is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class ChatConfig(Section):
    """An OpenAI-compatible chat endpoint. It is written into the run directory, so nothing in it
    may be a secret.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of the endpoint, without `/chat/completions`."""
    model: str = ""
    """Model name as the endpoint lists it. Tasks that need the endpoint are refused without it."""
    key_variable: str = ""
    """Name of the environment variable that holds the API key, on every worker. Empty, the default,
    sends no key.
    """
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the endpoint's model."""
    max_tokens: int = Field(default=1024, gt=0)
    """Maximum length of one reply in the endpoint's own tokens."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds for one attempt of a request."""
    attempts: int = Field(default=4, ge=1)
    """Maximum number of attempts of one request. An attempt is repeated after HTTP status 408, 425,
    429 or 5xx, a lost connection, a time-out, or an unreadable reply. After the last one the
    episode has no reward, and is run again as other infrastructure failures are.
    """
    extra: dict[str, JsonValue] = {}
    """Additional fields of every request, for example `{reasoning_effort = "low"}`."""


class JudgeConfig(ChatConfig):
    """`[judge]`: the model that scores episodes of tasks with a scorer `judge`."""

    prompt: str = ""
    """Text of the request; empty for the one in `envs/scoring/judge.py`. `{criteria}`,
    `{question}`, `{answer}`, `{calls}`, `{state}` and `{expected}` are replaced.
    """
    times: int = Field(default=1, ge=1)
    """Number of verdicts per episode; the majority decides."""
    tie: Literal["fail", "pass", "retry"] = "fail"
    """What an equal number of verdicts for and against means. `retry`: no verdict, so that the
    episode is run again.
    """


class SimulatedUserConfig(ChatConfig):
    """`[simulated_user]`: the model that speaks for the user of tasks with a simulated user."""

    prompt: str = ""
    """System prompt; empty for the one in `envs/scoring/users.py`. `{instructions}` and `{stop}`
    are replaced.
    """


class EnvConfig(Section):
    """`[env]`: where tasks come from.

    These are the keys of every task set. Each task set adds its own keys in a subclass in its
    folder under `envs/tasksets/`; the subclass also sets the only valid value of `name`.
    """

    name: str
    """Name of the task set, as listed in `envs/tasksets/registry.py`."""
    perturbation: PerturbationLevel = "clean"
    """How unfamiliar the tools are made: other names, wording and types, distractors, faults.
    `clean` changes nothing.
    """
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
    """`[tools.isolation]`: what tool code may do, and how strongly this is enforced."""

    required: IsolationLevel = "landlock"
    """Weakest isolation level with which the server may start. It uses the strongest level that the
    kernel supports.
    """
    profile: SandboxProfile = "compute"
    """`compute`: no file system at all. `files`: a scratch folder per session, at level
    `namespaces` a file system of its own; elsewhere a session that has too much in it is ended a
    moment later. `files+quota` refuses to start where the kernel does not keep the limit.
    """
    imports: Literal["stdlib", "numpy"] = "stdlib"
    """What tool code may import: parts of the standard library; `numpy` allows numpy as well."""
    packages: tuple[str, ...] = ()
    """Further packages that tool code and scorers may import, for example `["pydantic"]`. They must
    be installed where the tool server runs, import without files, and start no threads.
    """
    scratch_mib: int = Field(default=16, gt=0)
    """MiB: size limit of one session's scratch folder. It may hold 64 files for each MiB, and at
    least 256.
    """
    unsafe: bool = False
    """Allow `required = "none"`: tool code then has every permission of the server's user."""

    @model_validator(mode="after")
    def _none_is_deliberate(self) -> "IsolationConfig":
        if self.required == "none" and not self.unsafe:
            raise ValueError(
                'expected tools.isolation.unsafe = true with required = "none", found false: tool '
                "code would have every permission of the server's user; set it, or require seccomp"
            )
        return self


class ToolServerConfig(Section):
    """`[tools]`: the tool servers that a run starts."""

    isolation: IsolationConfig = IsolationConfig()
    """Isolation of tool code."""
    call_timeout_s: float = Field(default=5.0, gt=0)
    """Wall-clock seconds for one tool call. A timeout is an observation for the policy, not an
    infrastructure failure.
    """
    long_call_share: float = Field(default=0.1, gt=0, le=1)
    """Share of the time, in (0, 1], that a CPU-bound long call may run while many short calls
    arrive and fewer than two cores are free for the server and its clients; 1 turns pausing off.
    """
    session_cpu_s: int = Field(default=20, gt=0)
    """Limit of CPU seconds per session."""
    session_memory_mib: int = Field(default=512, gt=0)
    """MiB: limit of the address space of one session's process."""
    reply_limit_bytes: int = Field(default=65_536, gt=0)
    """Bytes: longest text that one call may return. The answer says if text was cut."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds: the client's deadline for one request, in addition to the time limits of its calls.
    Exceeding it is an infrastructure failure.
    """
    max_sessions: int = Field(default=2_048, gt=0)
    """Sessions that may be open at the same time on one server; further ones wait in a queue."""
    max_opens: int = Field(default=8_192, gt=0)
    """Sessions that may be opening or waiting at the same time; further ones get a 503 error."""
    open_wait_s: float = Field(default=10.0, ge=0)
    """Seconds that opening a session may wait for another session to close; then it is refused with
    503. On a full OpenEnv server it may wait as long.
    """
    max_calls: int = Field(default=16_384, gt=0)
    """Calls that may run at the same time on one server, over all sessions; further ones are
    refused with 503.
    """
    max_processes: int = Field(default=256, gt=0)
    """Processes of MCP servers that `trialrun serve` may run at the same time for its clients;
    further sessions are refused with `full`. In a run, the episodes at once are the limit.
    """
    breaker_failures: int = Field(default=5, gt=0)
    """Consecutive failures of a server after which its client stops sending requests to it."""
    breaker_pause_s: float = Field(default=5.0, gt=0)
    """Seconds for which the client then fails immediately, before it tries the server again."""
    session_idle_s: float = Field(default=600.0, gt=0)
    """Seconds without a call after which a session is closed."""
    record: bool = False
    """Record every call and answer, so that `trialrun episodes replay` can run episodes again."""
    record_dir: str = ""
    """Folder of the record; empty means `tool_traffic` in the run directory. Servers on other nodes
    must be able to write to it.
    """
