"""`[study]`: the models that a study makes, the arms that play them, and the settings they meet."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from cluster.config import RunConfig, checked_config, explain, read_recipe
from cluster.study_graph import digest_of
from envs.config import Section
from envs.errors import ConfigError

Changes = dict[str, JsonValue]
"""Part of a recipe, as a tree: it replaces what the recipe says."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*")
"""Names become folders."""
_OF_NO_CONSEQUENCE = {"dir", "models_dir", "name", "checkpoint_every", "keep_checkpoints"}


class ModelSection(Section):
    """`[study.models.NAME]`: a model that the study trains, once per seed, for every arm of it."""

    kind: Literal["sft", "grpo"] = "sft"
    """Imitation of the teacher, or reinforcement."""
    parent: str = ""
    """The model it starts from: another of the study, or empty for the recipe's."""
    match: str = ""
    """`sft`: imitate as many episodes as that `grpo` model played, and for as many tokens as it was
    trained on, instead of what `teacher.episodes` and `sft.epochs` say.
    """
    changes: Changes = Field(default_factory=dict)
    """What differs from the recipe while it is trained."""

    @model_validator(mode="after")
    def _only_imitation_is_matched(self) -> Self:
        if self.match and self.kind != "sft":
            raise ValueError(f"expected match with kind = 'sft' only, found {self.kind!r}")
        return self


class ArmSection(Section):
    """`[study.arms.NAME]`: a row of the table: a model, and how it plays."""

    title: str
    """What the table calls it."""
    model: str
    """The model of the study that plays."""
    against: tuple[str, ...] = ()
    """Arms that it is compared with: the best of them, setting by setting."""
    changes: Changes = Field(default_factory=dict)
    """What differs from the recipe while it plays."""


class StudySection(Section):
    """`[study]`: what is compared, on what."""

    slots: int = Field(default=2, ge=1)
    """Models that are imitated into being at once; about one CPU each."""
    temperatures: dict[str, float] = Field(default_factory=lambda: {"greedy": 0.0, "T=1": 1.0})
    """Sampling temperatures of the evaluation, by the name that the table calls them."""
    models: dict[str, ModelSection] = Field(default_factory=dict)
    arms: dict[str, ArmSection] = Field(default_factory=dict)
    settings: dict[str, Changes] = Field(default_factory=lambda: {"heldout": {}})
    """What differs from the recipe in each column of the table."""
    ceilings: tuple[str, ...] = ()
    """Settings for which to estimate what a policy that may not try can reach at best; the exact
    search takes seconds a task at depth 1 and 2, and does not end at depth 3.
    """
    ceiling_tasks: int = Field(default=60, ge=2)
    """Tasks of that estimate."""

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


@dataclass(frozen=True, slots=True)
class Study:
    """A recipe with its `[study]`; every arm and setting of it is known to make a valid run."""

    config: RunConfig
    section: StudySection

    @property
    def digest(self) -> str:
        """Short hash of all that the results depend on."""
        return digest_of([fingerprint(self.config), self.section.model_dump(mode="json")])

    def training(self, model: str) -> RunConfig:
        """Return the configuration with which `model` is trained."""
        return changed(self.config, f"models.{model}", self.section.models[model].changes)

    def playing(self, arm: str, setting: str, temperature: str) -> RunConfig:
        """Return the configuration with which `arm` is evaluated."""
        section = self.section
        changes = (section.settings[setting], section.arms[arm].changes)
        config = changed(self.config, f"arm {arm} in setting {setting}", *changes)
        played = {"temperature": section.temperatures[temperature]}
        return config.model_copy(update={"eval": config.eval.model_copy(update=played)})

    def seeded(self, seed: int) -> "Study":
        """Return the same study with another seed."""
        run = self.config.run.model_copy(update={"seed": seed})
        return Study(self.config.model_copy(update={"run": run}), self.section)

    def only(self, arms: Sequence[str]) -> "Study":
        """Return the study of these arms, and of the models that they need.

        Raises ConfigError for an arm that there is not.
        """
        section = self.section
        for arm in arms:
            if arm not in section.arms:
                known = ", ".join(section.arms)
                raise ConfigError(f"no arm called {arm!r} in the study; its arms are: {known}")
        kept = {
            name: arm.model_copy(update={"against": tuple(a for a in arm.against if a in arms)})
            for name, arm in section.arms.items()
            if name in arms
        }
        needed = _needed({arm.model for arm in kept.values()}, section.models)
        models = {name: model for name, model in section.models.items() if name in needed}
        smaller = section.model_copy(update={"arms": kept, "models": models})
        return Study(self.config, smaller)


def load_study(recipe: str, overrides: Sequence[str] = ()) -> Study:
    """Read a recipe that has a `[study]`. Raises ConfigError, MissingError."""
    tree = read_recipe(recipe, overrides)
    described = tree.pop("study", None)
    if not described:
        raise ConfigError(f"recipe {recipe} describes no study: expected a section [study]")
    config = checked_config(tree, recipe)
    try:
        section = StudySection.model_validate(described)
    except ValidationError as error:
        raise ConfigError(explain(error, f"recipe {recipe}, [study]", StudySection)) from None
    study = Study(config, section)
    if not (section.arms and section.settings and section.temperatures):
        raise ConfigError(f"recipe {recipe}: expected arms, settings and temperatures in [study]")
    for name, model in section.models.items():
        trained = study.training(name)
        if model.kind == "grpo":
            trained.check_trainable()
    for arm in section.arms:
        for setting in section.settings:
            for temperature in section.temperatures:
                study.playing(arm, setting, temperature)
    return study


def read_seeds(text: str, first: int) -> tuple[int, ...]:
    """Return the seeds that `text` names: `3` is three from `first` on, `11,12` are these two.

    Raises ConfigError for anything else.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise ConfigError(f"--seeds {text!r}: expected a number of seeds, or a list like 11,12,13")
    numbers = [int(word) for word in words]
    if "," not in text:
        numbers = [first + index for index in range(numbers[0])]
    if not numbers or len(set(numbers)) != len(numbers):
        raise ConfigError(f"--seeds {text!r}: expected at least one seed, and each once")
    return tuple(numbers)


def changed(config: RunConfig, origin: str, *changes: Mapping[str, JsonValue]) -> RunConfig:
    """Return `config` with `changes` applied in order; a value replaces a value, tables too.

    Raises ConfigError, which names `origin`.
    """
    tree = config.model_dump(mode="json")
    for change in changes:
        _apply(tree, change, config)
    return checked_config(tree, origin)


def fingerprint(config: RunConfig, *sections: str) -> JsonValue:
    """Return what results depend on of `sections`, or of all without any.

    Where things lie, and how often a run is saved, is left out; the seed never is.
    """
    tree = config.model_dump(mode="json", include=set(sections) or None)
    kept = config.run.model_dump(mode="json", exclude=_OF_NO_CONSEQUENCE)
    tree["run"] = kept if not sections or "run" in sections else {"seed": config.run.seed}
    return tree


def _apply(tree: Changes, change: Mapping[str, JsonValue], section: Section) -> None:
    for key, value in change.items():
        below, inner = getattr(section, key, None), tree.get(key)
        if isinstance(below, Section) and isinstance(inner, dict) and isinstance(value, dict):
            _apply(inner, value, below)
        else:
            tree[key] = value


def _known(name: str, names: Collection[str], where: str) -> None:
    if name and name not in names:
        raise ValueError(f"{where}: expected one of {', '.join(names)}, found {name!r}")


def _no_circles(models: Mapping[str, ModelSection]) -> None:
    for name in models:
        if name in _needed({models[name].parent, models[name].match} - {""}, models):
            raise ValueError(f"models.{name}: expected a model of its own origin, found a circle")


def _needed(names: set[str], models: Mapping[str, ModelSection]) -> set[str]:
    """Return `names` and every model that one of them builds on."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in (models[name].parent, models[name].match) if other]
    return found
