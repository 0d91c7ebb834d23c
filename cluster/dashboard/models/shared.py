"""Parts that several answers of the API share."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Json = Any
"""A value of JSON whose shape another program decides, such as the arguments of a tool call."""


class Answer(BaseModel):
    """Base of every answer; numbers that are not finite are sent as null."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class Problem(Answer):
    """An error as RFC 9457 describes it, with what to do about it."""

    type: str
    """`urn:trialrun:problem:CODE`."""
    title: str
    """The kind of error in a few words."""
    status: int
    """HTTP status."""
    detail: str
    """What was expected and what was found."""
    fix: str
    """What to do."""
    code: str
    """Short name of the kind, stable between versions."""
    instance: str = ""
    """Path of the request."""
    position: int | None = None
    """Of a filter: character at which it goes wrong, from 0."""
    length: int | None = None
    """Of a filter: how many characters are wrong."""
    suggestions: list[str] = []
    """Of a filter: replacements that were probably meant."""


class Damage(Answer):
    """A part of a run directory that could not be read; everything else is shown."""

    where: str
    """Path below the run directory, with a line or byte where there is one."""
    what: str
    """What was found there."""
    fix: str
    """What to do, or why nothing has to be done."""
    severity: Literal["note", "warning", "error"] = "warning"


class Coverage(Answer):
    """How many stored episodes the index holds, and of how many it has read the details.

    Fields that come from details (calls, flags, texts) are null, and filters do not match them,
    where the details are not read yet.
    """

    episodes: int
    details: int
    complete: bool
    """Whether everything that is stored has been read."""
