"""What the stages of a study find, as their `result.json` stores it."""

from typing import cast

from pydantic import BaseModel, ConfigDict

from envs.tools import JsonObject


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
    trial_calls_per_episode: float | None


class CeilingResult(StageResult):
    """Highest accuracy that is possible without trials."""

    setting: str
    success: float
