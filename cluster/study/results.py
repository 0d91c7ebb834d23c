"""What the stages of a study find, as their `result.json` stores it."""

from typing import cast

from pydantic import BaseModel, ConfigDict

from envs.tools import JsonObject
from rollout.evaluation.intervals import Interval, Method, interval_from_error


class StageResult(BaseModel):
    """What every stored result has; other keys of the file are kept by `StageGraph`, not here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seconds: float = 0.0
    """Wall seconds of the attempt that finished the stage."""

    def to_json(self) -> JsonObject:
        """Return what the stage itself found; the graph adds the seconds."""
        content = self.model_dump(mode="json", exclude={"seconds"}, exclude_none=True)
        return cast(JsonObject, content)


class ModelResult(StageResult):
    """What the training of a model took and reached; SFT and RL differ in the optional parts."""

    played_episodes: int
    """Episodes that were run, of the teacher or of the policy."""
    trained_tokens: int
    """Tokens that went through the model in training, prompts and observations included."""
    optimizer_steps: int
    kept_episodes: int | None = None
    """Correct episodes that SFT trained on."""
    first_loss: float | None = None
    last_loss: float | None = None
    first_answers: float | None = None
    """Accuracy in the first RL step."""
    last_answers: float | None = None


class EvaluationResult(StageResult):
    """What one evaluation measured; the file has the complete summary."""

    arm: str
    setting: str
    temperature: str
    accuracy: float | None
    stderr: float | None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_method: Method = "none"
    tasks: int
    trial_calls_per_episode: float | None

    @property
    def interval(self) -> Interval:
        """95 % interval of the accuracy, over tasks.

        Results that an older version stored have none: it follows from the standard error.
        """
        if self.accuracy_low is None and self.accuracy is not None and self.stderr is not None:
            return interval_from_error(self.accuracy, self.stderr, self.tasks)
        return Interval(self.accuracy_low, self.accuracy_high, self.accuracy_method)


class CeilingResult(StageResult):
    """Highest accuracy that is possible without trials, in the sense of the environment."""

    setting: str
    success: float
    standard_error: float
    tasks: int = 0
    """Tasks that it was computed for; 0 if an older version, which did not store it, computed it.
    """

    @property
    def interval(self) -> Interval:
        """95 % interval over tasks."""
        return interval_from_error(self.success, self.standard_error, self.tasks)
