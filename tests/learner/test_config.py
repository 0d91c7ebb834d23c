import tomllib

import pytest
import tomli_w
from pydantic import ValidationError

from envs.errors import ConfigError
from learner.backends.schedule import rl_scale, sft_scale
from learner.config import (
    LearnerConfig,
    SftConfig,
    check_adapters,
    check_sampling_for_training,
)
from rollout.config import EpisodeConfig, LoraConfig


def test_muon_on_sharded_matrices_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"zero_stage = 0"):
        SftConfig(optimizer="muon", zero_stage=2)
    assert SftConfig(optimizer="muon", zero_stage=0).optimizer == "muon"


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"dual_clip": 1.2}, "dual_clip"),
        ({"ratio_reference": "proximal", "tis_floor": 2.0}, "tis_floor"),
        ({"loss": "gspo", "credit": "phase"}, "gspo_token"),
        ({"advantage": "maxrl", "advantage_eps": 1e-6}, "at least 0.01 .*'maxrl', found 1e-06"),
        (
            {"kl_coef": 0.1, "kl_estimator": "k2", "kl_unbiased": True},
            "'k1' or 'k3' with kl_unbiased = true, found 'k2'.* set kl_estimator = 'k3'",
        ),
        ({"overlong": {"max_tokens": 100}}, r"overlong.buffer_tokens below .* = 100, found 128"),
        ({"overlong": {"max_tokens": 64, "buffer_tokens": 64}}, r"= 64, found 64"),
    ],
)
def test_combinations_that_cannot_work_are_refused(section: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        LearnerConfig.model_validate(section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"clip_low": 0.3, "loss": "sapo"}, "set loss to 'token' or 'gspo' or .* clip_low to 0.2"),
        ({"clip_high": 0.3, "loss": "reinforce"}, "set loss to 'token' or .* clip_high to 0.25"),
        ({"dual_clip": 3.0, "loss": "cispo"}, "set loss to 'token' or 'gspo' or 'gspo_token'"),
        ({"dual_clip": 3.0, "loss": "sapo"}, r"dual_clip = 3\.0 does nothing with loss = 'sapo'"),
        ({"dual_clip": 3.0, "loss": "reinforce"}, "or dual_clip to 0.0"),
        ({"sapo_tau_positive": 2.0}, "set loss to 'sapo'"),
        ({"sapo_tau_negative": 2.0, "loss": "cispo"}, "set loss to 'sapo'"),
        ({"tis_mode": "token_mask"}, "set ratio_reference to 'proximal'"),
        ({"tis_cap": 3.0}, "tis_cap = 3.0 does nothing with ratio_reference = 'behaviour'"),
        ({"tis_floor": 0.5}, "set ratio_reference to 'proximal'"),
        ({"constant_length": 1}, "set aggregation to 'constant'"),
        ({"kl_unbiased": True}, "set kl_coef above 0"),
        ({"kl_estimator": "k1"}, "set kl_coef above 0"),
        ({"trial_cost": {"charge": "all"}}, "charge = 'all' does nothing with per_call = 0"),
        ({"trial_cost": {"min_success_rate": 0.5}}, "or min_success_rate to 0.75"),
        ({"trial_cost": {"most": 0.1}}, "set per_call above 0"),
        ({"overlong": {"penalty": 0.5}}, "penalty = 0.5 does nothing with max_tokens = 0"),
        ({"overlong": {"buffer_tokens": 64}}, "or buffer_tokens to 128"),
        ({"muon_lr": 0.1}, "muon_lr = 0.1 does nothing with optimizer = 'adamw'"),
        ({"phase_weights": {"trial": 0, "experience": 0, "execution": 0}}, "set execution to 1"),
        (
            {
                "credit": "phase",
                "trial_cost": {"per_call": 0.1},
                "phase_weights": {"trial": 0, "experience": 0},
            },
            "trial_cost.per_call = 0.1 does nothing .* set phase_weights.trial above 0",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    section: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as refused:
        LearnerConfig.model_validate(section)
    assert refused.value.error_count() == 1


@pytest.mark.parametrize("loss", ["token", "gspo", "gspo_token", "cispo", "sapo", "reinforce"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_a_stored_configuration_says_every_default_and_is_accepted(
    loss: str, aggregation: str
) -> None:
    config = LearnerConfig.model_validate({"loss": loss, "aggregation": aggregation})
    stored = tomllib.loads(tomli_w.dumps(config.model_dump(mode="json")))
    assert set(stored) == set(LearnerConfig.model_fields)
    assert LearnerConfig.model_validate(stored) == config


def test_every_option_is_a_recipe_line() -> None:
    recipe = """
        advantage = "maxrl"
        advantage_ddof = 1
        credit = "phase"
        loss = "gspo_token"
        ratio_reference = "proximal"
        tis_mode = "sequence_mask"
        tis_floor = 0.5
        entropy_coef = 0.01
        max_negative_kl = 0.5
        trial_cost = { per_call = 0.02, charge = "excess", min_success_rate = 0.8 }
        overlong = { max_tokens = 400, buffer_tokens = 100 }
    """
    config = LearnerConfig.model_validate(tomllib.loads(recipe))
    assert config.trial_cost.min_success_rate == 0.8
    assert config.overlong.buffer_tokens == 100
    assert config.entropy_gradient
    assert not LearnerConfig().entropy_gradient


@pytest.mark.parametrize("eps", [0, 0.01, 0.1])
def test_maxrl_takes_a_divisor_that_is_none_or_large_enough(eps: float) -> None:
    assert LearnerConfig(advantage="maxrl", advantage_eps=eps).advantage_eps == eps


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rate"):
        LearnerConfig.model_validate({"learning_rate": 1e-4})


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 40}, {"temperature": 0.0}])
def test_sampling_that_the_loss_cannot_correct_is_refused(sampling: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(sampling))):
        check_sampling_for_training(EpisodeConfig.model_validate(sampling))


def test_full_sampling_is_accepted_at_any_temperature() -> None:
    check_sampling_for_training(EpisodeConfig(temperature=0.7))


def test_dropout_of_adapters_is_for_sft() -> None:
    lora = LoraConfig(rank=4, dropout=0.1)
    check_adapters(lora, SftConfig())
    with pytest.raises(ConfigError, match=r"dropout = 0 in reinforcement learning, found 0\.1"):
        check_adapters(lora, LearnerConfig())


def test_muon_does_not_train_adapters() -> None:
    for section in (SftConfig, LearnerConfig):
        muon = section(optimizer="muon", zero_stage=0)
        check_adapters(LoraConfig(), muon)
        with pytest.raises(ConfigError, match=r"'adamw' with model\.lora\.rank = 4, found 'muon'"):
            check_adapters(LoraConfig(rank=4), muon)


def test_the_rate_warms_up_and_falls() -> None:
    config = LearnerConfig(warmup_steps=2, decay_steps=4)
    assert [rl_scale(config, step) for step in range(7)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0]
    assert rl_scale(LearnerConfig(), 10_000) == 1
    sft = SftConfig(decay_fraction=0.5)
    assert [sft_scale(sft, step, 4) for step in range(4)] == [1, 1, 1, 0.5]
