"""The configuration of a run: sections of every package, a TOML recipe, and overrides."""

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, JsonValue, ValidationError, create_model, model_validator

from cluster.config.collect_config import CollectSection
from cluster.config.fleet_config import (
    DEFAULT_GROUP,
    SHARED_KEYS,
    ClusterSection,
    RolloutsSection,
    with_shared_keys,
)
from cluster.config.known_keys import (
    LIKENESS,
    explain,
    keys_meant_by,
    said_of,
    stray_keys,
    unknown_key,
)
from cluster.config.metrics_config import MetricsSection
from cluster.config.study_config import StudySection, needed_models
from envs.config import JudgeConfig, Section, SimulatedUserConfig, ToolServerConfig
from envs.errors import ConfigError, MissingError
from envs.tasks import Split
from envs.tasksets.catalog.config import CatalogEnvConfig
from envs.tasksets.registry import EnvSection, every_key
from learner.config import (
    LearnerConfig,
    SftConfig,
    check_adapters,
    check_sampling_for_training,
)
from rollout.config import EngineConfig, EpisodeConfig, ModelConfig
from rollout.mirror.config import MirrorConfig

RECIPES = Path(__file__).parents[1] / "recipes"


class RunSection(Section):
    """`[run]`: name, place, seed and length of a run."""

    name: str = Field(default="run", pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """Name of the run; its directory is `dir/name`. Letters, digits, `.`, `_` and `-`."""
    dir: str = "runs"
    """Folder of run directories, which every node must see; relative to TRIALRUN_HOME, if set."""
    models_dir: str = "models"
    """Folder for models that are built, converted or downloaded; later runs reuse them."""
    seed: int = Field(default=0, ge=0)
    """Random seed; every other seed is derived from it."""
    steps: int = Field(default=100, ge=0)
    """Number of learner steps."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps between checkpoints; a resumed run repeats at most this many."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""
    stall_after_s: float = Field(default=600.0, ge=0)
    """Seconds without progress after which a warning names what the run waits for: no episode ends
    while groups are awaited, or one part of a step takes longer. 0 turns it off.
    """
    deterministic: bool = False
    """The same seed gives the same episodes, losses and weights, bit for bit, on one machine,
    whatever the number of workers; see docs/determinism.md for what it costs."""


class EvalSection(Section):
    """`[eval]`: the tasks of an evaluation and how they are sampled."""

    split: Split | Literal["all"] = "heldout"
    """Tasks to evaluate on; `all` is every task of a file."""
    tasks: int = Field(default=128, ge=0)
    """Number of tasks; 0 means all of them."""
    samples: int = Field(default=1, ge=1)
    """Episodes per task."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Sampling temperature of evaluation, in place of the episode's; 0 is greedy."""
    seed: int = Field(default=0, ge=0)
    """Random seed of the choice of tasks, combined with the run's seed."""
    by: tuple[str, ...] = ()
    """Task tags to break the results down by, such as `["depth", "novelty", "depth*novelty"]`;
    empty means every tag that has between 2 and 8 values.
    """


class TeacherSection(Section):
    """`[teacher]`: demonstrations by the scripted teacher, for SFT."""

    episodes: int = Field(default=2000, ge=1)
    """Episodes to run; SFT uses only the successful ones."""
    concurrency: int = Field(default=64, ge=1)
    """Episodes that run concurrently."""


class RunConfig(Section):
    """The complete configuration of a run; `config.toml` in its directory holds it, resolved."""

    run: RunSection = RunSection()
    model: ModelConfig = ModelConfig()
    env: EnvSection = CatalogEnvConfig()
    judge: JudgeConfig = JudgeConfig()
    simulated_user: SimulatedUserConfig = SimulatedUserConfig()
    tools: ToolServerConfig = ToolServerConfig()
    engine: EngineConfig = EngineConfig()
    episode: EpisodeConfig = EpisodeConfig()
    cluster: ClusterSection = ClusterSection()
    rollouts: RolloutsSection = RolloutsSection()
    teacher: TeacherSection = TeacherSection()
    collect: CollectSection = CollectSection()
    sft: SftConfig = SftConfig()
    learner: LearnerConfig = LearnerConfig()
    eval: EvalSection = EvalSection()
    mirror: MirrorConfig = MirrorConfig()
    metrics: MetricsSection = MetricsSection()

    @model_validator(mode="before")
    @classmethod
    def _groups_are_complete(cls, tree: Any) -> Any:
        return with_shared_keys(tree)

    @model_validator(mode="after")
    def _turns_fit_the_model(self) -> Self:
        if self.episode.max_tokens_per_turn >= self.model.max_model_len:
            raise ValueError(
                f"episode.max_tokens_per_turn ({self.episode.max_tokens_per_turn}) must be below "
                f"model.max_model_len ({self.model.max_model_len})"
            )
        return self

    @model_validator(mode="after")
    def _engines_have_their_gpus(self) -> Self:
        size, gpus = self.engine.tensor_parallel_size, self.cluster.gpus_per_worker
        sizes = [("engine", "cluster", size, gpus)] if self.rollouts.workers else []
        for name, group in self.rollouts.groups.items():
            path = f"rollouts.groups.{name}"
            sizes.append((path, path, group.tensor_parallel_size, group.gpus_per_worker))
        for engine, place, size, gpus in sizes:
            if size > 1 and 0 < gpus < size:
                raise ValueError(
                    f"{engine}.tensor_parallel_size ({size}) needs as many GPUs per worker: set "
                    f"{place}.gpus_per_worker (now {gpus:g}), or 0 for a CPU"
                )
        return self

    @model_validator(mode="after")
    def _groups_are_possible(self) -> Self:
        names = ", ".join(self.rollouts.groups)
        if names and self.run.deterministic:
            raise ValueError(
                f"run.deterministic needs workers of one kind, found rollouts.groups ({names}): "
                "engines of other sizes compute other bits; leave the groups out"
            )
        if names and self.cluster.transport == "cuda_ipc":
            raise ValueError(
                f"cluster.transport 'cuda_ipc' needs every engine on the learner's GPU, found "
                f"rollouts.groups ({names}): set cluster.transport to 'shm'"
            )
        return self

    @model_validator(mode="after")
    def _adapters_travel_by_shared_memory(self) -> Self:
        if self.model.lora.rank and self.cluster.transport != "shm":
            raise ValueError(
                f"model.lora.rank ({self.model.lora.rank}) needs cluster.transport 'shm', found "
                f"{self.cluster.transport!r}: adapters travel through shared memory"
            )
        return self

    @model_validator(mode="after")
    def _sessions_have_room(self) -> Self:
        sessions = max(
            self.rollouts.episodes_per_worker,
            *(group.episodes_per_worker for group in self.rollouts.groups.values()),
            0,
        )
        if self.episode.mode == "free" and self.episode.trial_sessions == "isolated":
            sessions *= 2  # execution's session waits while a trial has one of its own
        if self.cluster.tool_placement == "worker" and sessions > self.tools.max_sessions:
            raise ValueError(
                f"rollouts.episodes_per_worker ({self.rollouts.episodes_per_worker}) may open "
                f"{sessions} tool sessions at once, more than tools.max_sessions "
                f"({self.tools.max_sessions}) of the worker's server"
            )
        return self

    @model_validator(mode="after")
    def _deterministic_is_possible(self) -> Self:
        if not self.run.deterministic:
            return self
        if not self.episode.seeded:
            raise ValueError(
                "run.deterministic needs episode.seeded = true: otherwise the engine chooses seeds"
            )
        if self.model.dtype != "float32" and not self.cluster.gpus_per_worker:
            raise ValueError(
                "run.deterministic needs model.dtype = 'float32' on CPU workers: in "
                f"{self.model.dtype} a token's logprob depends on the other sequences of its batch"
            )
        return self

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.run.dir) / self.run.name

    def worker_kinds(self) -> dict[str, Self]:
        """Return for each group of workers this configuration as if they were the only ones:
        `rollouts.workers`, `[cluster]` and `[engine]` then describe them. The default comes first.
        """
        alone = self.rollouts.model_copy(update={"groups": {}})
        found = {DEFAULT_GROUP: self.model_copy(update={"rollouts": alone})}
        for name, group in self.rollouts.groups.items():
            sections: dict[str, Section] = {}
            for section, keys in SHARED_KEYS.items():
                before = alone if section == "rollouts" else getattr(self, section)
                own = {key: getattr(group, key) for key in keys}
                if section == "rollouts":
                    own["workers"] = group.workers
                sections[section] = before.model_copy(update=own)
            found[name] = self.model_copy(update=sections)
        return found

    def check_trainable(self) -> None:
        """Refuse what evaluation may do but training may not. Raises ConfigError."""
        check_sampling_for_training(self.episode)
        check_adapters(self.model.lora, self.learner)
        if self.episode.experience == "dropped":
            raise ConfigError(
                "expected episode.experience = 'carried' for training, found 'dropped': trials "
                "would be rewarded for an execution that did not see them"
            )
        if self.episode.mode == "direct" and not self.learner.phase_weights.execution:
            raise ConfigError(
                "expected learner.phase_weights.execution above 0 with episode.mode = 'direct', "
                "found 0: such episodes have no other phase; set it to 1"
            )
        if not self.episode.seeded and self.run.seed:
            raise ConfigError(
                "expected episode.seeded = true with a run.seed: otherwise the seed has no effect"
            )


RunKeys = create_model("RunKeys", __base__=RunConfig, env=(every_key(), ...))
"""Every key that a run may have, of whatever task set: to look up keys, never validated."""
RecipeKeys = create_model("RecipeKeys", __base__=RunKeys, study=(StudySection, StudySection()))
"""Every key that a recipe may have: those of a run, and the description of a study."""


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe (a shipped name or a TOML file) and apply `section.key=value` overrides.

    Without a recipe, "", every key has its default. A recipe's `[study]` is for `trialrun study`:
    it is checked and not returned. Raises ConfigError for broken TOML, an unknown key or an
    impossible value; MissingError when there is no such recipe.
    """
    tree = read_recipe(recipe, overrides)
    checked_study(tree.pop("study", {}), recipe, overrides)
    return checked_config(tree, recipe)


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> dict[str, JsonValue]:
    """Return a recipe as a tree with overrides applied, unchecked. Raises as `load_config` does."""
    tree = _read(_locate(recipe)) if recipe else {}
    for override in overrides:
        _override(tree, override)
    return tree


def checked_config(tree: Mapping[str, JsonValue], origin: str) -> RunConfig:
    """Return the configuration that `tree` describes. Raises ConfigError, which names `origin`."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, f"recipe {origin}", RecipeKeys)) from None


def checked_study(described: JsonValue, origin: str, overrides: Sequence[str]) -> StudySection:
    """Return the study that `described` is; the recipe's keys in it are known ones too.

    Raises ConfigError, which names `origin`; also if an override adds a model that no arm uses,
    since its name is then probably misspelt.
    """
    try:
        study = StudySection.model_validate(described)
    except ValidationError as error:
        raise ConfigError(explain(error, f"recipe {origin}", StudySection, "study")) from None
    faults = [
        unknown_key(path, RunKeys, under)
        for under, changes in study.changes.items()
        for path in stray_keys(changes, RunKeys)
    ]
    played = needed_models({arm.model for arm in study.arms.values()}, study.models)
    for override in overrides:
        name = override.partition("=")[0].strip().removeprefix("study.models.").partition(".")[0]
        if name in study.models and name not in played:
            near = get_close_matches(name, played, 1, LIKENESS)
            meant = f"; did you mean study.models.{near[0]}?" if near else ""
            faults.append(f"study.models.{name}: no arm uses this model{meant}")
    if faults:
        raise ConfigError(said_of(f"recipe {origin}", faults))
    return study


def to_toml(config: RunConfig) -> str:
    """Return the resolved configuration as TOML text."""
    return tomli_w.dumps(config.model_dump(mode="json"))


def _locate(recipe: str) -> Path:
    path = Path(recipe)
    if path.suffix == ".toml" or "/" in recipe:
        if not path.is_file():
            raise MissingError(
                f"no recipe file {recipe}; shipped recipes are: {', '.join(recipe_names())}"
            )
        return path
    shipped = RECIPES / f"{recipe}.toml"
    if not shipped.is_file():
        raise MissingError(
            f"no recipe called {recipe!r}; shipped recipes are: {', '.join(recipe_names())}; "
            "the name of your own file must end in .toml"
        )
    return shipped


def _read(path: Path) -> dict[str, JsonValue]:
    try:
        # utf-8-sig: some editors start a file with a byte-order mark
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # an integer of too many digits, deep nesting
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _override(tree: dict[str, JsonValue], override: str) -> None:
    key, found, text = override.partition("=")
    parts = key.strip().split(".")
    if not found or len(parts) < 2 or not all(parts):
        raise ConfigError(_no_override(override, text if found else "..."))
    table = tree
    for part in parts[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {part} is a value, not a section")
        table = inner
    table[parts[-1]] = _value(text.strip())


def _no_override(override: str, value: str) -> str:
    """Return an error about an override that is not `section.key=value`."""
    said = f"{override!r}: expected section.key=value, for example run.seed=3"
    meant = keys_meant_by(override.partition("=")[0].strip(), RecipeKeys)
    return (
        f"{said}; did you mean {' or '.join(f'{key}={value}' for key in meant)}?" if meant else said
    )


def _value(text: str) -> JsonValue:
    """Read `text` as a TOML value; text that is not TOML is taken as a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
