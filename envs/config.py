"""Config sections of the world: which environment, and how its tools are served."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

IsolationLevel = Literal["namespaces", "landlock", "seccomp", "none"]
"""Strongest first: each level has what the weaker ones have; `none` keeps the limits alone."""
SandboxProfile = Literal["compute", "files", "files+quota"]
PerturbationLevel = Literal["clean", "slight", "medium", "heavy", "union"]
"""RoTBench's names; what each does is in `envs/perturbation/levels.py`."""
CatalogNovelty = Literal["names", "operations", "compositions"]
CatalogQuirk = Literal["none", "key", "argument", "unit", "pair", "order", "busy", "closed"]
CatalogDoc = Literal["vague", "true", "false", "missing"]

Share = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A config section: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CatalogConfig(Section):
    """`[env.catalog]`: how hard the built-in tools are; the defaults are the easiest benchmark."""

    depths: dict[Literal["1", "2", "3"], Share] = {"1": 1.0}
    """Weights of the composition depths: how many operations a question names, one tool each."""
    tools: int = Field(default=4, ge=1, le=9)
    """Tools of a task; those that it does not need are distractors."""
    novelty: tuple[CatalogNovelty, ...] = ("names",)
    """What is new in the splits other than `train`, drawn evenly where several are given: `names`
    alone; `operations` that training never uses; `compositions` of known operations that it never
    uses (depth 2 and more). The names are new in each.
    """
    examples: float = Field(default=0.0, ge=0, le=1)
    """Share of tasks that state their goals by example (`123>321`), not by name (`reverse`);
    tasks that need a new operation always do.
    """

    recurrent: float = Field(default=0.5, ge=0, le=1)
    """Share of `train` tasks whose tools recur with the same behaviour; the rest is a long tail of
    tools drawn anew, whose names can only be copied.
    """
    quirks: dict[CatalogQuirk, Share] = {"none": 0.5, "key": 0.25, "argument": 0.25}
    """Weights of what a tool hides. `key`: an argument that no doc names; `argument`: the doc is
    wrong about the argument's name; `unit`: digits of results are off by 3 or 6; `pair`: a second
    argument, as documented (hides nothing); `order`: the two arguments are swapped; `busy`: the
    first call of a session fails; `closed`: a session must open it first (a state).
    """
    docs: dict[CatalogDoc, Share] = {"vague": 0.5, "true": 0.2, "false": 0.3}
    """Weights of what a description says: nothing of use, the operation, another operation
    (misleading), or nothing at all (`missing`).
    """
    duplicates: float = Field(default=0.0, ge=0, le=1)
    """Chance of a tool that is not needed to do what another of the task does; recurrent tools of
    `train` stay as they are.
    """
    marks: float = Field(default=0.0, ge=0, le=1)
    """Share of tasks whose tools each put a hidden letter behind what they return, so that no
    policy can work the answer out without calling them.
    """

    @field_validator("novelty", mode="before")
    @classmethod
    def _one_level_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def deepest(self) -> int:
        """The greatest depth that is drawn; 0 where none is."""
        return max((int(depth) for depth, weight in self.depths.items() if weight > 0), default=0)

    @property
    def trial_calls(self) -> int:
        """Trial calls with which every task can be solved: for each tool, the calls of a step."""
        return self.step_calls * self.tools

    @property
    def execution_calls(self) -> int:
        """Execution calls that a policy may need which forgets what to mend, once a step."""
        return self.step_calls * self.deepest

    @property
    def step_calls(self) -> int:
        """Most calls until a tool answers: one refused, one to open it, one that counts."""
        return 3 if self.quirks.get("closed", 0) > 0 else 2

    @model_validator(mode="after")
    def _can_be_drawn(self) -> "CatalogConfig":
        if not self.novelty:
            raise ValueError("expected at least one novelty level, found none: give names")
        deepest = max(
            (int(depth) for depth, weight in self.depths.items() if weight > 0), default=0
        )
        if deepest == 0:
            raise ValueError(
                f"expected depths with a weight above 0, found "
                f"{self.depths}: give for example {{1 = 0.5, 2 = 0.3, 3 = 0.2}}"
            )
        for shares in (self.quirks, self.docs):
            if sum(shares.values()) <= 0:
                raise ValueError(
                    f"expected quirks and docs with a weight above 0, found {shares}: give one"
                )
        if self.marks > 0 and self.duplicates > 0:
            raise ValueError(
                "expected no duplicates among tools that leave marks, found both: two tools would "
                "have an answer each; set one of them to 0"
            )
        if deepest > self.tools:
            raise ValueError(
                f"expected a tool per operation, found depth {deepest} with {self.tools} tools: "
                "give more tools"
            )
        if "compositions" in self.novelty and deepest == 1:
            raise ValueError(
                "expected a depth of 2 or more for new compositions, found depth 1 alone: "
                "give depths"
            )
        return self


class EnvConfig(Section):
    """`[env]`: where tasks come from."""

    name: Literal["catalog", "toolhop", "file"] = "catalog"
    """`catalog`: the built-in unfamiliar tools; `toolhop`: a file in ToolHop's format; `file`: your
    own tasks, with tools in Python or behind OpenAPI, MCP or OpenEnv.
    """
    path: str = ""
    """Data file of `toolhop`; JSONL file of `file`, or a folder with `tasks.jsonl`; empty for the
    dozen tasks of either that ship with the project.
    """
    catalog: CatalogConfig = CatalogConfig()
    """Difficulty of `catalog`."""
    heldout_percent: int = Field(default=20, ge=0, le=100)
    """`toolhop` and `file`: share of tasks, by hash of their id, that form the held-out split."""
    perturbation: PerturbationLevel = "clean"
    """How unfamiliar the tools are made: other names, words, types, distractors, faults."""
    perturbation_seed: int = Field(default=0, ge=0)
    """Draw of the perturbation, mixed with each task's id."""


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
