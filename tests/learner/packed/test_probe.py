"""A model's own noise is off in training, and what packs do not compute is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from envs.errors import ConfigError
from learner.batch import EpisodeBatch, read_episodes
from learner.config import LearnerConfig, SftConfig
from learner.packed.packing import Pack, pack
from learner.packed.policy import PolicyModule, load_policy
from learner.packed.probe import check_logprobs
from learner.pretrained.architecture import check_trained
from learner.pretrained.noise import without_noise
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig
from tests.learner.families.tiny_families import MAX_LEN, WINDOW, Family, build_family
from tests.learner.policy_backend import CPU, PolicyBackend

GPT2_SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": MAX_LEN}


def causal(name: str, config: str = "", **text: Any) -> Family:
    return Family(
        model=f"{name}ForCausalLM", config=config or f"{name}Config", text=text, stands_for=name
    )


NOISY = {
    "GPT-2": Family(
        model="GPT2LMHeadModel", config="GPT2Config", text=GPT2_SIZES, stands_for="GPT-2"
    ),
    "StarCoder2": causal(
        "Starcoder2", residual_dropout=0.1, embedding_dropout=0.1, attention_dropout=0.1
    ),
    "Phi": causal("Phi", resid_pdrop=0.1, embd_pdrop=0.1, attention_dropout=0.1),
    "OPT, layers": causal("OPT", ffn_dim=96, word_embed_proj_dim=64, dropout=0.0, layerdrop=0.5),
    "Mixtral, jitter": causal("Mixtral", num_local_experts=4, router_jitter_noise=0.2),
}
"""Models with noise in training: dropout, whole layers, inputs of a router."""

UNPACKED = {
    "StableLM": causal("StableLm"),
    "Doge": causal("Doge"),
}
"""Models that transformers does not give our attention, or that add to a mask of their own."""

REFUSED = {
    "gpt-oss": causal(
        "GptOss",
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=WINDOW,
    ),
    "Gemma 2": causal("Gemma2", query_pre_attn_scalar=32, sliding_window=WINDOW),
    "Gemma 2, capped attention": causal(
        "Gemma2", query_pre_attn_scalar=32, sliding_window=WINDOW, final_logit_softcapping=None
    ),
    "Llama 4": causal(
        "Llama4",
        "Llama4TextConfig",
        intermediate_size_mlp=96,
        num_local_experts=2,
        attention_chunk_size=WINDOW,
        no_rope_layers=[1, 0],
    ),
}
"""Attention sinks; soft caps; no text model apart from its head."""
REASONS = {
    "gpt-oss": r"GptOssForCausalLM does not support an attention implementation",
    "Gemma 2": "found final_logit_softcapping",
    "Gemma 2, capped attention": "found attn_logit_softcapping",
    "Llama 4": "found Llama4ForCausalLM without such parts",
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder of a model, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            family = {**NOISY, **UNPACKED, **REFUSED}[name]
            made[name] = build_family(family, tmp_path_factory.mktemp("probe") / "model")
        return made[name]

    return folder


@pytest.fixture
def table(make_episode: Any, make_table: Any) -> Any:
    return make_table(
        [make_episode(i, reward=float(i % 2), length=20 + 3 * i, group="g") for i in range(4)]
    )


def passes(policy: PolicyModule, batch: EpisodeBatch) -> list[Pack]:
    members = [list(range(len(batch)))] if policy.packs else [[i] for i in range(len(batch))]
    return [pack(batch, part, batch.loss_mask_N) for part in members]


@torch.no_grad()
def plain(model: Any, table: Any) -> Tensor:
    """Return transformers' own logprobs of all tokens but the first, episode by episode."""
    found = []
    for ids in table["token_ids"].to_pylist():
        ids_T = torch.tensor(ids)
        all_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        found.append(all_TV.gather(1, ids_T[1:, None])[:, 0])
    return torch.cat(found)


def trainer_of(folder: Path, *, sft: bool) -> Trainer:
    setup = TrainerSetup(
        rank=0,
        world_size=1,
        master_addr="",
        master_port=0,
        model_path=str(folder),
        model=ModelConfig(path=str(folder), max_model_len=MAX_LEN),
        learner=LearnerConfig(lr=1e-3),
        sft=SftConfig(lr=1e-3, batch_tokens=1000) if sft else None,
    )
    return Trainer(setup, PolicyBackend)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("name", NOISY)
def test_training_gives_the_logprobs_of_sampling(
    built: Any, table: Any, name: str, packing: bool
) -> None:
    folder, batch = built(name), read_episodes(table)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    noise = (plain(model.train(), table) - plain(model.eval(), table)).abs().max()
    assert noise > 0.01, "a model without noise tests nothing"

    policy = load_policy(str(folder), torch.float32, CPU, packing=packing)
    assert policy.packs == packing
    for one in passes(policy, batch):
        with torch.no_grad():
            trained_P, sampled_P = policy.train()(one)[0], policy.eval()(one)[0]
        assert float((trained_P - sampled_P).abs().max()) < 1e-6
    check_logprobs(policy)


@pytest.mark.parametrize("name", ["GPT-2", "StarCoder2", "Phi"])
def test_sft_and_rl_train_the_policy_that_samples(built: Any, table: Any, name: str) -> None:
    """The loss of an SFT step is that of transformers without dropout, on the tokens of the mask;
    an RL step scores its tokens so.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(built(name), dtype=torch.float32).eval()
    batch = read_episodes(table)
    later_N = torch.ones(len(batch.token_ids_N), dtype=torch.bool)
    later_N[torch.from_numpy(batch.offsets[:-1]).long()] = False
    expected = plain(model, table)[torch.from_numpy(batch.loss_mask_N)[later_N]]

    (metrics,) = trainer_of(built(name), sft=True).sft(table)
    assert metrics["loss"] == pytest.approx(-float(expected.mean()), abs=1e-5)
    report = trainer_of(built(name), sft=False).rl_step(table)
    assert report.annotations is not None
    found = [x for row in report.annotations["trainer_logprobs"].to_pylist() for x in row]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_noise_is_off_in_nested_configurations_only_where_it_is_noise() -> None:
    config = transformers.LlavaConfig(
        text_config=transformers.PhiConfig(
            resid_pdrop=0.3, attention_dropout=0.1, layer_norm_eps=0.5
        )
    )
    text: Any = without_noise(config).get_text_config()
    assert (text.resid_pdrop, text.attention_dropout, text.layer_norm_eps) == (0, 0, 0.5)


def test_attention_that_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    """Falcon with ALiBi: transformers' own SDPA and eager differ, and cannot be exchanged."""
    config = transformers.FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, alibi=True
    )
    transformers.FalconForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"'packed_sdpa', found in .*packing to 'off'"):
        load_policy(str(tmp_path), torch.float32, CPU)
    alone = load_policy(str(tmp_path), torch.float32, CPU, packing=False)
    with pytest.raises(ConfigError, match=r"can replace, found FalconForCausalLM"):
        check_logprobs(alone)


def test_what_is_exported_has_the_dropout_of_its_source(built: Any, tmp_path: Path) -> None:
    trainer_of(built("Phi"), sft=True).export_model(tmp_path / "exported")
    assert AutoConfig.from_pretrained(tmp_path / "exported").resid_pdrop == 0.1


def test_noise_that_no_key_names_is_refused(llama_folder: Path) -> None:
    policy = load_policy(str(llama_folder), torch.float32, CPU)

    def add_noise(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output + 0.1 * torch.randn_like(output) if module.training else output

    policy.policy.get_input_embeddings().register_forward_hook(add_noise)
    with pytest.raises(ConfigError, match=r"same logprobs in training .* LlamaForCausalLM: this"):
        check_logprobs(policy)


@pytest.mark.parametrize("name", UNPACKED)
def test_attention_that_packs_do_not_compute_is_refused_with_the_way_out(
    built: Any, table: Any, name: str
) -> None:
    with pytest.raises(ConfigError, match=r"set learner\.packing and sft\.packing to 'off'"):
        check_logprobs(load_policy(str(built(name)), torch.float32, CPU))
    alone = load_policy(str(built(name)), torch.float32, CPU, packing=False)
    check_logprobs(alone)
    model: Any = AutoModelForCausalLM.from_pretrained(
        built(name), dtype=torch.float32, attn_implementation="eager"
    )
    batch = read_episodes(table)
    sampled = torch.from_numpy(batch.loss_mask_N)
    expected = plain(model.eval(), table)
    later_N = torch.ones(len(sampled), dtype=torch.bool)
    later_N[torch.from_numpy(batch.offsets[:-1]).long()] = False
    with torch.no_grad():
        found = torch.cat([alone.eval()(one)[0] for one in passes(alone, batch)])
    torch.testing.assert_close(found, expected[sampled[later_N]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_attention_that_the_learner_does_not_compute_is_refused(
    built: Any, name: str, packing: bool
) -> None:
    """Before a run, and by the learner that is started without its checks."""
    with pytest.raises(ConfigError, match=REASONS[name]):
        check_trained(built(name), ModelConfig(max_model_len=MAX_LEN))
    with pytest.raises(ConfigError, match=REASONS[name]):
        load_policy(str(built(name)), torch.float32, CPU, packing=packing)
    gpu = torch.device("cuda")  # never used: another attention is chosen for it
    with pytest.raises(ConfigError, match=REASONS[name]):
        load_policy(str(built(name)), torch.bfloat16, gpu, packing=packing)


@pytest.mark.parametrize("change", ["s_aux", "softcap", "position_bias", "indices", "mask"])
def test_a_change_of_attention_in_a_pack_is_refused(llama_folder: Path, change: str) -> None:
    """Also of a model that says nothing of it in its config.json."""
    policy = load_policy(str(llama_folder), torch.float32, CPU)
    layer: Any = policy.policy.get_decoder().layers[0].self_attn

    def with_change(module: Any, inputs: Any, options: dict[str, Any]) -> Any:
        key = "attention_mask" if change == "mask" else change
        return inputs, options | {key: torch.ones(1)}

    layer.register_forward_pre_hook(with_change, with_kwargs=True)
    with pytest.raises(ConfigError, match=r"attention without .* found it in this model.*'off'"):
        check_logprobs(policy)
