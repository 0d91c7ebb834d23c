"""The episode as nested pydantic models: what the trajectory benchmark compares Arrow with."""

from dataclasses import asdict
from typing import Any, Self

from pydantic import BaseModel

from rollout.episode import Episode


class PydanticMessage(BaseModel):
    role: str
    content: str


class PydanticSpan(BaseModel):
    start: int
    version: int


class PydanticCall(BaseModel):
    name: str
    arguments: str
    status: str
    result: str
    seconds: float
    cpu_seconds: float
    purpose: str


class PydanticTurn(BaseModel):
    phase: int
    start: int
    end: int
    text: str
    finish_reason: str
    policy_error: str
    calls: list[PydanticCall]


class PydanticEpisode(BaseModel):
    """Field by field what `Episode` holds; small records are plain dictionaries."""

    lease: dict[str, Any]
    environment: str
    split: str
    mode: str
    outcome: str
    error: str
    reward: float | None
    reward_parts: dict[str, float]
    answer: str
    question: str
    tags: dict[str, str]
    token_ids_T: list[int]
    phases_T: list[int]
    logprobs_T: list[float]
    spans: list[PydanticSpan]
    turns: list[PydanticTurn]
    messages: list[PydanticMessage]
    sampling: dict[str, Any]
    timings: dict[str, float]
    source: str
    worker: str
    tool_server: str
    isolation: str
    extra: dict[str, float]

    @classmethod
    def of(cls, episode: Episode) -> Self:
        """Return `episode` as a model."""
        return cls.model_validate(asdict(episode))
