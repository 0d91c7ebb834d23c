"""The config section of the catalog: the difficulty of its tasks and tools."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from envs.config import EnvConfig, Section

CatalogNovelty = Literal["names", "operations", "compositions"]
CatalogQuirk = Literal["none", "key", "argument", "unit", "pair", "order", "busy", "closed"]
CatalogDoc = Literal["vague", "true", "false", "missing"]

Share = Annotated[float, Field(ge=0)]


class CatalogConfig(Section):
    """`[env.catalog]`: difficulty of the built-in tasks; the defaults are the easiest benchmark."""

    depths: dict[Literal["1", "2", "3"], Share] = Field(default={"1": 1.0})
    """Relative weights of the composition depths. The depth is the number of operations that a
    question states; each needs one tool.
    """
    tools: int = Field(default=4, ge=1, le=9)
    """Number of tools per task; those that the task does not need are distractors."""
    novelty: tuple[CatalogNovelty, ...] = ("names",)
    """What is new outside `train`; with several levels, each is equally likely. `names`: only the
    names; `operations`: also operations that training never uses; `compositions`: also
    compositions of known operations that training never uses (depth 2 and more).
    """
    examples: float = Field(default=0.0, ge=0, le=1)
    """Share of tasks that state their goals by example (`123>321`), not by name (`reverse`). Tasks
    that need a new operation always state goals by example.
    """

    recurrent: float = Field(default=0.5, ge=0, le=1)
    """Share of `train` tasks whose tools recur with the same behaviour. The others have newly
    sampled tools (a long tail), whose names can only be copied.
    """
    quirks: dict[CatalogQuirk, Share] = Field(default={"none": 0.5, "key": 0.25, "argument": 0.25})
    """Relative weights of what a tool hides. `none`: nothing; `key`: an argument that no doc names;
    `argument`: the doc gives a wrong name for the argument; `unit`: digits of results are off by 3
    or 6; `pair`: a second argument, as documented (hides nothing); `order`: the two arguments are
    swapped; `busy`: the first call of a session fails; `closed`: a session must open the tool first
    (a state).
    """
    docs: dict[CatalogDoc, Share] = Field(default={"vague": 0.5, "true": 0.2, "false": 0.3})
    """Relative weights of what a description contains: nothing useful (`vague`), the operation
    (`true`), another operation (`false`, misleading), or no text (`missing`).
    """
    duplicates: float = Field(default=0.0, ge=0, le=1)
    """Chance that a tool which the task does not need does the same as another tool; recurrent
    tools of `train` are never changed.
    """
    marks: float = Field(default=0.0, ge=0, le=1)
    """Share of tasks whose tools each append a hidden letter to their result, so that no policy can
    work out the answer without calling them.
    """

    @field_validator("novelty", mode="before")
    @classmethod
    def _one_level_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def deepest(self) -> int:
        """The greatest depth with a weight above 0; 0 if there is none."""
        return max((int(depth) for depth, weight in self.depths.items() if weight > 0), default=0)

    @property
    def trial_calls(self) -> int:
        """Trial calls that suffice to solve every task: `step_calls` for each tool."""
        return self.step_calls * self.tools

    @property
    def execution_calls(self) -> int:
        """Execution calls that a policy needs if it forgets a repair once per step."""
        return self.step_calls * self.deepest

    @property
    def step_calls(self) -> int:
        """Most calls until a tool answers: one is refused, one opens a closed tool, one answers."""
        return 3 if self.quirks.get("closed", 0) > 0 else 2

    @model_validator(mode="after")
    def _can_be_sampled(self) -> "CatalogConfig":
        if not self.novelty:
            raise ValueError(
                'expected at least one novelty level, found none: set novelty = ["names"]'
            )
        deepest = max(
            (int(depth) for depth, weight in self.depths.items() if weight > 0), default=0
        )
        if deepest == 0:
            raise ValueError(
                f"expected depths with a weight above 0, found "
                f"{self.depths}: set for example {{1 = 0.5, 2 = 0.3, 3 = 0.2}}"
            )
        for shares in (self.quirks, self.docs):
            if sum(shares.values()) <= 0:
                raise ValueError(
                    f"expected quirks and docs with a weight above 0, found {shares}: raise one"
                )
        if self.marks > 0 and self.duplicates > 0:
            raise ValueError(
                "expected duplicates or marks, found both: a task would have two "
                "correct answers; set one of the two keys to 0"
            )
        if deepest > self.tools:
            raise ValueError(
                f"expected a tool per operation, found depth {deepest} with {self.tools} tools: "
                "increase tools"
            )
        if "compositions" in self.novelty and deepest == 1:
            raise ValueError(
                "expected a depth of 2 or more for new compositions, found depth 1 only: "
                "give depth 2 or 3 a weight"
            )
        return self


class CatalogEnvConfig(EnvConfig):
    """`[env]` with `name = "catalog"`: the built-in unfamiliar tools."""

    name: str = "catalog"
    """The built-in unfamiliar tools, generated without end."""
    catalog: CatalogConfig = CatalogConfig()
    """Difficulty of the tasks."""
