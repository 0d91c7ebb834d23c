"""`[study]`: the models that a study trains, the arms that use them, and the settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from cluster.config.metrics_config import MetricsSection
from cluster.config.run_config import RunConfig, checked_config, checked_study, read_recipe
from cluster.config.study_config import Changes, StudySection, needed_models
from cluster.study.graph import digest_of
from envs.config import JudgeConfig, Section, SimulatedUserConfig
from envs.errors import ConfigError
from envs.tasksets.catalog.config import CatalogConfig

_ADDED_LATER: Mapping[str, Mapping[str, JsonValue]] = {
    "model": {"tool_format": "auto", "chat_template": "", "template_options": {}},
    "episode": {"thoughts": "keep", "max_observation_tokens": 0, "long_prompts": "auto"},
    "env": {"scorers": [], "trusted_scorers": False, "scorer_timeout_s": 30.0},
    "metrics": MetricsSection().model_dump(mode="json"),
    "tools": {"max_processes": 256},
    "judge": JudgeConfig().model_dump(mode="json"),
    "simulated_user": SimulatedUserConfig().model_dump(mode="json"),
    "cluster": {
        "quarantine_losses": 3,
        "quarantine_window_s": 600.0,
        "quarantine_s": 1800.0,
        "keep_workers_s": 300.0,
    },
    "rollouts": {
        "max_drops_per_group": 16,
        "drain_timeout_s": 0.0,
        "kept_turns_mib": 1024,
        "groups": {},
    },
}
"""Keys that a study of an older version does not have, with the value that changes nothing for it:
with that value they are left out, so that such a study goes on.
"""
_IRRELEVANT: dict[str, set[str]] = {
    "run": {"dir", "models_dir", "name", "checkpoint_every", "keep_checkpoints", "stall_after_s"},
    "learner": {"packing"},
    "sft": {"checkpoint_every", "packing"},
}

_ENV_OF_EVERY_SET: dict[str, JsonValue] = {
    "catalog": CatalogConfig().model_dump(mode="json"),
    "path": "",
    "heldout_percent": 20,
}
"""Keys that `[env]` once had whatever its task set, with their defaults. They stay part of what is
hashed, so that the folders of studies made at that time still match their recipes.
"""


@dataclass(frozen=True, slots=True)
class Study:
    """A recipe with its `[study]`; every arm in every setting is checked to be a valid run."""

    config: RunConfig
    section: StudySection

    @property
    def digest(self) -> str:
        """Short hash of everything that the results depend on."""
        return digest_of([fingerprint(self.config), self.section.model_dump(mode="json")])

    def training(self, model: str) -> RunConfig:
        """Return the configuration with which `model` is trained."""
        return changed(self.config, f"models.{model}", self.section.models[model].changes)

    def evaluating(self, arm: str, setting: str, temperature: str) -> RunConfig:
        """Return the configuration with which `arm` is evaluated."""
        section = self.section
        changes = (section.settings[setting], section.arms[arm].changes)
        config = changed(self.config, f"arm {arm} in setting {setting}", *changes)
        sampling = {"temperature": section.temperatures[temperature]}
        return config.model_copy(update={"eval": config.eval.model_copy(update=sampling)})

    def seeded(self, seed: int) -> "Study":
        """Return the same study with another seed."""
        run = self.config.run.model_copy(update={"seed": seed})
        return Study(self.config.model_copy(update={"run": run}), self.section)

    def only(self, arms: Sequence[str]) -> "Study":
        """Return the study of these arms, and of the models that they need.

        Raises ConfigError for an unknown arm.
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
        needed = needed_models({arm.model for arm in kept.values()}, section.models)
        models = {name: model for name, model in section.models.items() if name in needed}
        smaller = section.model_copy(update={"arms": kept, "models": models})
        return Study(self.config, smaller)


def load_study(recipe: str, overrides: Sequence[str] = ()) -> Study:
    """Read a recipe that has a `[study]`. Raises ConfigError, MissingError."""
    tree = read_recipe(recipe, overrides)
    described = tree.pop("study", None)
    if not described:
        raise ConfigError(f"recipe {recipe} describes no study: expected a section [study]")
    section = checked_study(described, recipe, overrides)
    study = Study(checked_config(tree, recipe), section)
    if not (section.arms and section.settings and section.temperatures):
        raise ConfigError(f"recipe {recipe}: expected arms, settings and temperatures in [study]")
    for name, model in section.models.items():
        trained = study.training(name)
        if model.kind == "grpo":
            trained.check_trainable()
    for arm in section.arms:
        for setting in section.settings:
            for temperature in section.temperatures:
                study.evaluating(arm, setting, temperature)
    return study


def read_seeds(text: str, first: int) -> tuple[int, ...]:
    """Return the seeds that `text` names: `3` is three seeds from `first` on, `11,12` these two.

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
    """Return the part of `sections`, or of all sections, that results depend on.

    Paths and how often a run is saved are left out; the seed never is.
    """
    tree: dict[str, JsonValue] = config.model_dump(mode="json", include=set(sections) or None)
    tree.pop("mirror", None)  # a study has none
    if "env" in tree:
        tree["env"] = {**_ENV_OF_EVERY_SET, **config.env.model_dump(mode="json")}
    for name, ignored in _IRRELEVANT.items():
        if name in tree:
            tree[name] = getattr(config, name).model_dump(mode="json", exclude=ignored)
    if isinstance(tools := tree.get("tools"), dict):
        isolation = config.tools.isolation.model_dump(mode="json")
        added = {"packages"} if not isolation["packages"] else set()
        tree["tools"] = {**tools, "isolation": {k: isolation[k] for k in isolation.keys() - added}}
    for name, later in _ADDED_LATER.items():
        if isinstance(section := tree.get(name), dict):
            tree[name] = {
                key: value
                for key, value in section.items()
                if key not in later or value != later[key]
            }
            if not tree[name]:  # a section that was added as a whole
                del tree[name]
    return {"run": {"seed": config.run.seed}, **tree}


def _apply(tree: Changes, change: Mapping[str, JsonValue], section: Section) -> None:
    for key, value in change.items():
        below, inner = getattr(section, key, None), tree.get(key)
        if isinstance(below, Section) and isinstance(inner, dict) and isinstance(value, dict):
            _apply(inner, value, below)
        else:
            tree[key] = value
