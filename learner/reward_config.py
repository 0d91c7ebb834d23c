"""Config sections of what the learner adds to rewards before it compares episodes."""

from typing import Literal, Self

from pydantic import Field, model_validator

from envs.config import Section


class TrialCost(Section):
    """`[learner.trial_cost]`: a price on trial calls, charged inside the group."""

    per_call: float = Field(default=0.0, ge=0)
    """Taken from the reward per charged trial call; 0 is off."""
    charge: Literal["all", "successes", "excess"] = "excess"
    """Who pays for what. `all`: every episode for every trial call; `successes`: only those whose
    answer was right; `excess`: those, for their calls above the fewest among the group's
    successes."""
    min_success_rate: float = Field(default=0.75, ge=0, le=1)
    """Only groups in which at least this share of answers was right are charged: a policy that
    does not yet know is not taught to stop trying."""
    most: float = Field(default=0.5, ge=0)
    """Most that one episode pays, so that a dear success stays better than a cheap failure."""


class SoftOverlong(Section):
    """`[learner.overlong]`: DAPO's soft punishment of length, in sampled tokens of the episode."""

    max_tokens: int = Field(default=0, ge=0)
    """Episodes of this many sampled tokens or more pay all of `penalty`; 0 is off."""
    buffer_tokens: int = Field(default=128, ge=1)
    """The penalty rises linearly over the last so many tokens before `max_tokens`, below which it
    has to be."""
    penalty: float = Field(default=1.0, ge=0)
    """Taken from the reward at `max_tokens`."""

    @model_validator(mode="after")
    def _the_shortest_pay_nothing(self) -> Self:
        if 0 < self.max_tokens <= self.buffer_tokens:
            raise ValueError(
                f"expected overlong.buffer_tokens below overlong.max_tokens = {self.max_tokens}, "
                f"found {self.buffer_tokens}: the first sampled token would be punished; lower it"
            )
        return self
