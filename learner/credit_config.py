"""Config sections of what is rewarded and of what weighs in the loss, by phase of an episode."""

from typing import Literal, Self

from pydantic import Field, model_validator

from envs.config import Section


def refuse_ignored(section: Section, switch: str, keys: tuple[str, ...]) -> None:
    """Raise ValueError for a key that was changed although `switch` = 0 turns its use off."""
    for key in keys if getattr(section, switch) == 0 else ():
        found, default = getattr(section, key), type(section).model_fields[key].default
        if found != default:
            raise ValueError(
                f"{key} = {found!r} does nothing with {switch} = 0: set {switch} above 0, or "
                f"{key} to {default!r}"
            )


class PhaseWeights(Section):
    """Loss weight of a sampled token by the phase it belongs to."""

    trial: float = Field(default=1.0, ge=0)
    """Tokens of exploratory turns."""
    experience: float = Field(default=1.0, ge=0)
    """Tokens of the notes that the policy writes after its trials (`<experience>`)."""
    execution: float = Field(default=1.0, ge=0)
    """Tokens of the execution turns, the answer included."""

    @property
    def parts(self) -> tuple[bool, bool]:
        """Whether trials (with experience) and execution, the parts of phase credit, train."""
        return self.trial > 0 or self.experience > 0, self.execution > 0

    @model_validator(mode="after")
    def _something_trains(self) -> Self:
        if not any(self.parts):
            raise ValueError(
                "expected a phase_weights of trial, experience or execution above 0, found 0 for "
                "all: no token would be trained on; set execution to 1"
            )
        return self


class TrialCost(Section):
    """`[learner.trial_cost]`: cost of trial calls, subtracted before rewards are compared."""

    per_call: float = Field(default=0.0, ge=0)
    """Subtracted from the reward per charged trial call; 0 is off."""
    charge: Literal["all", "successes", "excess"] = "excess"
    """Which calls are charged. `all`: every trial call; `successes`: those of episodes with a
    correct answer; `excess`: of these episodes, the calls above the fewest that a correct episode
    of the group needed."""
    min_success_rate: float = Field(default=0.75, ge=0, le=1)
    """Only groups with at least this accuracy are charged, so that a policy that still needs
    trials does not learn to stop trying."""
    most: float = Field(default=0.5, ge=0)
    """Maximum cost of one episode, so that an expensive success stays better than a failure."""

    @model_validator(mode="after")
    def _off_is_off(self) -> Self:
        refuse_ignored(self, "per_call", ("charge", "min_success_rate", "most"))
        return self


class SoftOverlong(Section):
    """`[learner.overlong]`: DAPO's soft length penalty, in sampled tokens of the episode."""

    max_tokens: int = Field(default=0, ge=0)
    """Episodes of this many sampled tokens or more get the full `penalty`; 0 is off."""
    buffer_tokens: int = Field(default=128, ge=1)
    """The penalty rises linearly over this many tokens before `max_tokens`; must be below it."""
    penalty: float = Field(default=1.0, ge=0)
    """Subtracted from the reward at `max_tokens`."""

    @model_validator(mode="after")
    def _the_shortest_pay_nothing(self) -> Self:
        refuse_ignored(self, "max_tokens", ("buffer_tokens", "penalty"))
        if 0 < self.max_tokens <= self.buffer_tokens:
            raise ValueError(
                f"expected overlong.buffer_tokens below overlong.max_tokens = {self.max_tokens}, "
                f"found {self.buffer_tokens}: the first sampled token would be penalised; lower it"
            )
        return self
