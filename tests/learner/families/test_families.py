"""Each family is right, or refused before a run starts: the learner's side, without an engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.errors import ConfigError
from learner.config import LearnerConfig, SftConfig
from learner.outputs.publish import SharedMemoryPublisher
from learner.packed.attention import attention_for
from learner.packed.policy import PolicyModule, load_policy
from learner.packed.probe import check_logprobs
from learner.pretrained.architecture import check_trained
from learner.pretrained.folder import folder_weights
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import LoraConfig, ModelConfig
from rollout.weights.layout import push_layout, tensor_shapes
from tests.learner.families.table import PAGE, learner_cells, rows_of
from tests.learner.families.tiny_families import FAMILIES, MAX_LEN, ONE_BY_ONE, WINDOW, build_family
from tests.learner.policy_backend import CPU, PolicyBackend

Make = Any
RIGHT = [name for name, family in FAMILIES.items() if not family.refused]
REFUSED = [name for name, family in FAMILIES.items() if family.refused]
LARGEST = 1e-4
"""Nats in float32; the requirement is 1e-3."""


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder of a family's model, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = build_family(FAMILIES[name], tmp_path_factory.mktemp("family") / "model")
        return made[name]

    return folder


@pytest.fixture
def table(make_episode: Make, make_table: Make) -> Any:
    """Two groups of two episodes with a common beginning; all are longer than the window."""
    episodes = []
    for number, length in enumerate((3 * WINDOW + 5, 2 * WINDOW, 4 * WINDOW + 1, 2 * WINDOW + 7)):
        episode = make_episode(
            number, group=f"g{number // 2}", reward=float(number % 2), length=length
        )
        start = make_episode(100 + number // 2, length=WINDOW).token_ids_T[:WINDOW]
        object.__setattr__(episode, "token_ids_T", (*start, *episode.token_ids_T[WINDOW:]))
        episodes.append(episode)
    return make_table(episodes)


def trainer_of(folder: Path, sft: dict[str, Any] | None = None, **options: Any) -> Trainer:
    setup = TrainerSetup(
        rank=0,
        world_size=1,
        master_addr="",
        master_port=0,
        model_path=str(folder),
        model=ModelConfig(path=str(folder), max_model_len=MAX_LEN),
        learner=LearnerConfig.model_validate({"lr": 1e-3, **options}),
        sft=None if sft is None else SftConfig.model_validate({"lr": 1e-3, **sft}),
    )
    return Trainer(setup, PolicyBackend)


@torch.no_grad()
def plain_logprobs(model: Any, table: Any) -> list[np.ndarray]:
    """Return what transformers gives each episode alone; NaN for the first token."""
    found = []
    for ids in table["token_ids"].to_pylist():
        ids_T = torch.tensor(ids)
        all_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        chosen = all_TV.gather(1, ids_T[1:, None])[:, 0].numpy()
        found.append(np.concatenate([[np.nan], chosen]))
    return found


def largest_gap(trainer: Trainer, model: Any, table: Any) -> float:
    gaps = [
        np.abs(mine - plain)[~np.isnan(mine)]
        for mine, plain in zip(trainer.logprobs(table), plain_logprobs(model, table), strict=True)
    ]
    return float(np.concatenate(gaps).max())


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("name", RIGHT)
def test_logprobs_are_those_of_transformers(
    folder_of: Any, table: Any, name: str, packing: str
) -> None:
    trainer = trainer_of(folder_of(name), packing=packing)
    model = AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32).eval()
    packs = trainer._backend.packs
    assert packs == (packing == "auto" and name not in ONE_BY_ONE)
    assert largest_gap(trainer, model, table) < LARGEST


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_trained_is_pushed_and_exported(
    folder_of: Any, table: Any, tmp_path: Path, name: str
) -> None:
    folder, config = folder_of(name), ModelConfig(max_model_len=MAX_LEN)
    carried = check_trained(folder, config).carried
    trainer = trainer_of(folder)
    publisher = SharedMemoryPublisher(
        tmp_path, push_layout(str(folder), config), folder_weights(folder, carried)
    )
    before = Path(publisher.publish(1, trainer.pushed_weights()).path).read_bytes()
    report = trainer.rl_step(table)
    assert report.metrics["grad_norm"] > 0 and not report.dropped
    after = Path(publisher.publish(2, trainer.pushed_weights()).path).read_bytes()
    publisher.close()
    assert before != after

    trainer.export_model(tmp_path / "exported")
    assert tensor_shapes(tmp_path / "exported") == tensor_shapes(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", dtype=torch.float32, output_loading_info=True
    )
    model, found = loaded
    assert not found["missing_keys"]
    assert largest_gap(trainer, model.eval(), table) < LARGEST
    assert check_trained(tmp_path / "exported", config).carried == carried


def test_the_table_of_the_documentation_is_current() -> None:
    rows = rows_of(PAGE.read_text("utf-8"))
    assert list(rows) == list(FAMILIES), "run `python -m tests.learner.families.engine_check`"
    for name, row in rows.items():
        assert row.startswith(learner_cells(name, packs=name not in ONE_BY_ONE))
        assert "WRONG" not in row


@pytest.mark.parametrize("name", ["Qwen3-MoE", "Gemma 3", "LFM2"])
def test_sft_lowers_the_loss(folder_of: Any, table: Any, name: str) -> None:
    trainer = trainer_of(folder_of(name), sft={"epochs": 4, "batch_tokens": 1000})
    losses = [metrics["loss"] for metrics in trainer.sft(table)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", REFUSED)
def test_scaled_logits_are_refused_before_a_start(folder_of: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=FAMILIES[name].refused):
        check_trained(folder_of(name), ModelConfig())
    with pytest.raises(ConfigError, match=FAMILIES[name].refused):
        load_policy(str(folder_of(name)), torch.float32, CPU)


@pytest.mark.parametrize("name", sorted(ONE_BY_ONE))
def test_the_probe_sees_episodes_that_leak(folder_of: Any, name: str) -> None:
    attention = attention_for(CPU, torch.float32)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder_of(name), dtype=torch.float32, attn_implementation=attention
    )
    with pytest.raises(ConfigError, match=r"something in this model mixes episodes.*packing"):
        check_logprobs(PolicyModule(model, attention))


def test_the_probe_sees_logits_that_are_scaled_after_the_head(folder_of: Any) -> None:
    policy = load_policy(str(folder_of("Llama")), torch.float32, CPU)
    forward = policy.policy.forward

    def scaled(**inputs: Any) -> Any:
        outputs = forward(**inputs)
        outputs.logits = outputs.logits / 8
        return outputs

    assert check_logprobs(policy) < LARGEST
    policy.policy.forward = scaled
    with pytest.raises(ConfigError, match="does more to its logits"):
        check_logprobs(policy)


@pytest.mark.parametrize("name", ["Qwen3-MoE", "Gemma 3"])
def test_adapters_that_the_engine_would_not_find_are_refused(folder_of: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=r"same layers in the learner and in the engine"):
        check_trained(folder_of(name), ModelConfig(lora=LoraConfig(rank=4)))


def test_adapters_on_the_attention_of_a_mixture_are_accepted(folder_of: Any) -> None:
    lora = LoraConfig(rank=4, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    assert check_trained(folder_of("Qwen3-MoE"), ModelConfig(lora=lora)).carried == ()
