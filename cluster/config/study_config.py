"""The config section of a study: the models that it trains, and the arms that use them."""

import re
from collections.abc import Collection, Mapping
from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from envs.config import Section

Changes = dict[str, JsonValue]
"""Part of a recipe, as a tree; it overrides the recipe."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*")
"""Names become folders."""


class ModelSection(Section):
    """`[study.models.NAME]`: a model that the study trains, once per seed, for every arm of it."""

    kind: Literal["sft", "grpo"] = "sft"
    """`sft`: train on the teacher's demonstrations; `grpo`: train with RL."""
    parent: str = ""
    """The model it starts from: another of the study, or empty for the recipe's."""
    match: str = ""
    """`sft`: train on as many episodes as that `grpo` model ran, and on as many tokens as it was
    trained on, in place of `teacher.episodes` and `sft.epochs`.
    """
    changes: Changes = Field(default_factory=dict)
    """Overrides of the recipe while the model is trained."""

    @model_validator(mode="after")
    def _only_sft_is_matched(self) -> Self:
        if self.match and self.kind != "sft":
            raise ValueError(f"expected match with kind = 'sft' only, found {self.kind!r}")
        return self


class ArmSection(Section):
    """`[study.arms.NAME]`: a row of the table: a model, and how it acts."""

    title: str
    """Name of the row in the table."""
    model: str
    """The model of the study that acts."""
    against: tuple[str, ...] = ()
    """Arms to compare with; in each setting, the best of them."""
    changes: Changes = Field(default_factory=dict)
    """Overrides of the recipe while the arm is evaluated."""


class StudySection(Section):
    """`[study]`: the models, arms and settings of a comparison."""

    slots: int = Field(default=2, ge=1)
    """SFT stages that run concurrently; each uses about one CPU."""
    temperatures: dict[str, float] = Field(default_factory=lambda: {"greedy": 0.0, "T=1": 1.0})
    """Sampling temperatures of the evaluation, by their names in the table."""
    models: dict[str, ModelSection] = Field(default_factory=dict)
    """The models that the study trains, by name."""
    arms: dict[str, ArmSection] = Field(default_factory=dict)
    """The rows of the table, by name."""
    settings: dict[str, Changes] = Field(default_factory=lambda: {"heldout": {}})
    """Overrides of the recipe for each column of the table, by name."""
    ceilings: tuple[str, ...] = ()
    """Settings for which to estimate the best accuracy without trials that is possible for a policy
    whose texts come from tools (`docs/catalog.md`); the exact search takes up to a second per task
    at depths 1 and 2, and does not finish at depth 3.
    """
    ceiling_tasks: int = Field(default=400, ge=2)
    """Number of tasks of that estimate."""

    @property
    def changes(self) -> dict[str, Changes]:
        """Every part of a recipe in this section, by its path."""
        return {
            **{f"study.models.{k}.changes": model.changes for k, model in self.models.items()},
            **{f"study.arms.{k}.changes": arm.changes for k, arm in self.arms.items()},
            **{f"study.settings.{k}": changes for k, changes in self.settings.items()},
        }

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> Self:
        for name in (*self.models, *self.arms, *self.settings, *self.temperatures):
            if not _NAME.fullmatch(name):
                raise ValueError(f"expected names of letters, digits and ._=-, found {name!r}")
        for name, model in self.models.items():
            for key, other in (("parent", model.parent), ("match", model.match)):
                _known(other, self.models, f"models.{name}.{key}")
            if model.match and self.models[model.match].kind != "grpo":
                raise ValueError(f"models.{name}.match: expected a grpo model, found {model.match}")
        for name, arm in self.arms.items():
            _known(arm.model or "?", self.models, f"arms.{name}.model")
            for other in arm.against:
                _known(other, self.arms, f"arms.{name}.against")
        for setting in self.ceilings:
            _known(setting, self.settings, "ceilings")
        _no_circles(self.models)
        return self


def _known(name: str, names: Collection[str], where: str) -> None:
    if name and name not in names:
        raise ValueError(f"{where}: expected one of {', '.join(names)}, found {name!r}")


def _no_circles(models: Mapping[str, ModelSection]) -> None:
    for name in models:
        if name in needed_models({models[name].parent, models[name].match} - {""}, models):
            raise ValueError(f"models.{name}: expected a model of its own origin, found a circle")


def needed_models(names: set[str], models: Mapping[str, ModelSection]) -> set[str]:
    """Return `names` and every model that one of them builds on."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in (models[name].parent, models[name].match) if other]
    return found
