"""Where a run's files are: its paths are absolute from here on, in every process and node."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cluster.config.run_config import RunConfig
from envs.config import Section
from envs.errors import ConfigError
from rollout.mirror.address import MirrorAddress, parse_address
from rollout.mirror.config import MirrorConfig

HOME = "TRIALRUN_HOME"
"""Environment variable: the folder that relative places (run directories, built models) are below,
instead of the working folder."""
JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it (this is its whole name) for the entry point of a submitted job."""
BUILT_MODELS = ("tiny", "smollm2-135m-instruct")
"""Models that are built here, so that no folder has to exist."""


_ADDRESS = re.compile(r"[a-z][a-z0-9+]+:/")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def storage_address(text: str, environ: Mapping[str, str], section: MirrorConfig) -> MirrorAddress:
    """Return the address of object storage that `text` is, with the endpoint of `section`,
    or the endpoint that the environment names for all S3 clients. Raises ConfigError.
    """
    try:
        found = parse_address(text, section.endpoint, section.region)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    endpoint = next(filter(None, map(environ.get, _ENDPOINTS)), "")
    if found.scheme != "s3" or found.endpoint or not endpoint:
        return found
    return replace(found, endpoint=endpoint.rstrip("/"))


def in_ray_job(environ: Mapping[str, str]) -> bool:
    """Whether this process is the entry point of a submitted Ray job."""
    return JOB_MARK in environ


def home(environ: Mapping[str, str]) -> Path:
    """Return the absolute folder that relative places are below."""
    return Path(environ.get(HOME) or ".").expanduser().absolute()


def absolute_place(key: str, value: str | Path, environ: Mapping[str, str]) -> Path:
    """Return the absolute path of the place `value`, which the key or option `key` names.

    Raises ConfigError for a relative one in a Ray job without TRIALRUN_HOME: the working folder of
    a job is Ray's, which deletes it, or the one in which somebody typed `ray start`.
    """
    if _ADDRESS.match(str(value)):
        raise ConfigError(
            f"expected a folder in {key}, found the address {value}: a run is written to a folder, "
            "and mirror.url keeps a copy of it on object storage"
        )
    place = Path(value).expanduser()
    if not place.is_absolute() and in_ray_job(environ) and not environ.get(HOME):
        joint = " " if key.startswith("-") else "="
        raise ConfigError(
            f"expected an absolute path inside a Ray job, found {key}{joint}{value}: the working "
            f"folder of a job does not last. Type {key}{joint}/SHARED/{place}, where /SHARED is a "
            f"folder that every node sees; or start Ray with {HOME}=/SHARED in its environment; or "
            "use `trialrun submit`"
        )
    return home(environ) / place


def with_absolute_places(config: RunConfig, environ: Mapping[str, str]) -> RunConfig:
    """Return `config` with absolute `run.dir` and `run.models_dir`. Raises as `absolute_place`."""
    places = {
        key: str(absolute_place(f"run.{key}", getattr(config.run, key), environ))
        for key in ("dir", "models_dir")
    }
    return config.model_copy(update={"run": config.run.model_copy(update=places)})


def with_absolute_inputs(config: RunConfig, environ: Mapping[str, str]) -> RunConfig:
    """Return `config` with absolute paths of model, chat template, tasks and written turns.

    They are looked for in the working folder, and then below TRIALRUN_HOME; a value that names
    nothing there stays as it is: the name of a model or of a template, or an error found later.
    """
    model, tasks = config.model, str(getattr(config.env, "path", ""))
    found = {"path": _found(model.path, environ)}
    if "/" in model.chat_template or model.chat_template.endswith(".jinja"):  # else it is a name
        found["chat_template"] = _found(model.chat_template, environ)
    changes: dict[str, Section] = {"model": model.model_copy(update=found)}
    if tasks:
        changes["env"] = config.env.model_copy(update={"path": _found(tasks, environ)})
    if config.collect.turns:
        turns = _found(config.collect.turns, environ)
        changes["collect"] = config.collect.model_copy(update={"turns": turns})
    return config.model_copy(update=changes)


def with_absolute_paths(config: RunConfig, environ: Mapping[str, str]) -> RunConfig:
    """Return `config` with absolute places and inputs. Raises as `absolute_place` does."""
    return with_absolute_inputs(with_absolute_places(config, environ), environ)


def _found(value: str, environ: Mapping[str, str]) -> str:
    """Return the absolute path of an input; `value` itself for a name or a missing file."""
    path = Path(value).expanduser()
    if not value or value in BUILT_MODELS:
        return value
    for folder in (Path.cwd(), home(environ)):
        if (folder / path).exists():
            return str(folder / path)
    return value
