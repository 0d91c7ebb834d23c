"""Models that cannot be trained are refused before Ray starts, and leave no run directory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster.config.run_config import RunConfig, load_config
from cluster.fleet.open_pool import open_pool
from cluster.lifecycle.inputs import find_model
from cluster.lifecycle.model_checks import check_serving, check_training
from cluster.study.demo import run_demo
from cluster.study.recipe import load_study
from cluster.study.study import run_study
from cluster.training.sft import run_sft
from cluster.training.train import run_train
from envs.errors import ConfigError, MissingError
from tests.learner.families.tiny_families import FAMILIES, MAX_LEN, WINDOW, build_family


def recipe(tmp_path: Path, model: Path, *more: str) -> RunConfig:
    places = (f"run.dir={tmp_path / 'runs'}", f"run.models_dir={tmp_path / 'models'}")
    return load_config(
        "catalog", [*places, f"model.path={model}", "model.max_model_len=256", *more]
    )


def study_of(config: RunConfig) -> None:
    model = (f"model.path={config.model.path}", "model.max_model_len=256")
    study = load_study("study", [f"run.models_dir={config.run.models_dir}", *model])
    run_study(study, [0], config.path / "study")


@pytest.mark.parametrize(
    "run",
    [
        lambda config: run_train(config, resume=False),
        lambda config: run_sft(config, [], resume=False),
        run_demo,
        study_of,
    ],
    ids=["train", "sft", "demo", "study"],
)
def test_a_model_that_cannot_be_trained_starts_nothing(
    tmp_path: Path, run: Callable[[RunConfig], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    config = recipe(tmp_path, build_family(FAMILIES["Granite"], tmp_path / "granite"))
    with pytest.raises(ConfigError, match=r"found logits_scaling in .*granite: choose a model"):
        run(config)
    assert not (config.path / "run.json").exists()


@pytest.mark.parametrize(("name", "note"), [("LFM2", "one episode per pass"), ("Qwen3-MoE", "")])
def test_a_model_whose_episodes_are_not_packed_is_told(
    tmp_path: Path, name: str, note: str
) -> None:
    config = recipe(tmp_path, build_family(FAMILIES[name], tmp_path / "model"))
    said = check_training(config, config.learner, find_model(config))
    assert said.startswith(note) and bool(said) == bool(note)


@pytest.mark.parametrize("fork", ["episode.thoughts=drop", "episode.experience=dropped"])
def test_forked_episodes_need_a_learner_that_packs(tmp_path: Path, fork: str) -> None:
    hybrid = recipe(tmp_path, build_family(FAMILIES["LFM2"], tmp_path / "hybrid"), fork)
    with pytest.raises(ConfigError, match=rf"found {fork.split('=')[0].replace('.', '[.]')} = "):
        check_training(hybrid, hybrid.learner, Path(hybrid.model.path))
    dense = build_family(FAMILIES["Qwen3"], tmp_path / "dense")
    unpacked = recipe(tmp_path, dense, fork, "learner.packing=off")
    with pytest.raises(ConfigError, match="packing is 'off'"):
        check_training(unpacked, unpacked.learner, dense)
    packed = recipe(tmp_path, dense, fork)
    assert check_training(packed, packed.learner, dense) == ""


def test_an_episode_may_be_longer_than_a_window(tmp_path: Path) -> None:
    config = recipe(tmp_path, build_family(FAMILIES["Mistral"], tmp_path / "model"))
    assert config.model.max_model_len > WINDOW
    assert check_training(config, config.learner, find_model(config)) == ""


def test_a_context_beyond_the_text_model_is_refused(tmp_path: Path) -> None:
    folder = build_family(FAMILIES["Gemma 3"], tmp_path / "model")
    config = recipe(tmp_path, folder, f"model.max_model_len={MAX_LEN + 1}")
    with pytest.raises(ConfigError, match=f"at most {MAX_LEN}, the positions of the model"):
        find_model(config)


def test_files_beside_the_weights_are_ignored(tmp_path: Path) -> None:
    folder = build_family(FAMILIES["Mistral"], tmp_path / "model")
    (folder / "consolidated.safetensors").write_bytes(b"another format")
    config = recipe(tmp_path, folder)
    assert check_training(config, config.learner, find_model(config)) == ""


@pytest.mark.parametrize("suffix", ["bin", "gguf"])
def test_other_formats_are_refused_with_the_way(tmp_path: Path, suffix: str) -> None:
    folder = build_family(FAMILIES["Llama"], tmp_path / "model")
    (folder / "model.safetensors").rename(folder / f"pytorch_model.{suffix}")
    with pytest.raises(MissingError, match=rf"pytorch_model\.{suffix}: convert it with `python -c"):
        find_model(recipe(tmp_path, folder))
    with pytest.raises(MissingError, match=r"convert it|found a"):
        find_model(recipe(tmp_path, folder / f"pytorch_model.{suffix}"))


def test_a_head_that_vllm_would_not_use_starts_nothing(tmp_path: Path) -> None:
    family = FAMILIES["LFM2"]
    untied = replace(family, text=family.text | {"tie_word_embeddings": False})
    config = recipe(tmp_path, build_family(untied, tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"tied embeddings .*lm_head\.weight of its own"):
        run_train(config, resume=False)
    assert not config.path.exists()
    tied = build_family(family, tmp_path / "tied")
    check_serving(recipe(tmp_path, tied, "cluster.gpus_per_worker=1"), tied)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.unserved])
def test_a_model_that_vllm_does_not_serve_on_a_cpu_starts_nothing(
    tmp_path: Path, name: str
) -> None:
    family = FAMILIES[name]
    folder = build_family(family, tmp_path / "model")
    config = recipe(tmp_path, folder, "model.dtype=bfloat16")
    with pytest.raises(ConfigError, match=rf"expected GPUs for .*{family.unserved}"):
        run_train(config, resume=False)
    assert not config.path.exists()
    check_serving(recipe(tmp_path, folder, "cluster.gpus_per_worker=1"), folder)


def test_a_model_for_images_and_text_is_pushed_through_shared_memory(tmp_path: Path) -> None:
    gpus = ("cluster.gpus_per_worker=0.5", "cluster.gpus_per_rank=0.5")
    folder = build_family(FAMILIES["Gemma 3"], tmp_path / "model")
    check_serving(recipe(tmp_path, folder, *gpus), folder)
    direct = recipe(tmp_path, folder, *gpus, "cluster.transport=cuda_ipc")
    with pytest.raises(ConfigError, match=r"expected cluster\.transport = 'shm'"):
        check_serving(direct, folder)


async def test_no_pool_opens_on_a_model_that_vllm_cannot_serve(tmp_path: Path) -> None:
    """Whoever opens it: a study and a collection make no check of their own."""
    folder = build_family(FAMILIES["LFM2"], tmp_path / "model")
    config = recipe(tmp_path, folder)
    with pytest.raises(ConfigError) as told:
        check_serving(config, folder)
    with pytest.raises(ConfigError) as caught:
        async with open_pool(config, folder, tmp_path / "run"):
            pass
    assert str(caught.value) == str(told.value)
