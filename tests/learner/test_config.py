import tomllib

import pytest
from pydantic import ValidationError

from envs.errors import ConfigError
from learner.config import LearnerConfig, SftConfig, check_sampling_for_training
from learner.schedule import rl_scale, sft_scale
from rollout.config import EpisodeConfig


def test_muon_on_sharded_matrices_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"zero_stage = 0"):
        SftConfig(optimizer="muon", zero_stage=2)
    assert SftConfig(optimizer="muon", zero_stage=0).optimizer == "muon"


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"dual_clip": 1.2}, "dual_clip"),
        ({"ratio_reference": "proximal", "tis_floor": 2.0}, "tis_floor"),
        ({"tis_mode": "token_mask"}, "ratio_reference"),
        ({"tis_floor": 0.5}, "ratio_reference"),
        ({"loss": "gspo", "credit": "phase"}, "gspo_token"),
        ({"overlong": {"max_tokens": 100}}, r"overlong.buffer_tokens below .* = 100, found 128"),
        ({"overlong": {"max_tokens": 64, "buffer_tokens": 64}}, r"= 64, found 64"),
    ],
)
def test_combinations_that_cannot_work_are_refused(section: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        LearnerConfig.model_validate(section)


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


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rate"):
        LearnerConfig.model_validate({"learning_rate": 1e-4})


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 40}, {"temperature": 0.0}])
def test_sampling_that_the_loss_cannot_correct_is_refused(sampling: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(sampling))):
        check_sampling_for_training(EpisodeConfig.model_validate(sampling))


def test_full_sampling_is_accepted_at_any_temperature() -> None:
    check_sampling_for_training(EpisodeConfig(temperature=0.7))


def test_the_rate_warms_up_and_falls() -> None:
    config = LearnerConfig(warmup_steps=2, decay_steps=4)
    assert [rl_scale(config, step) for step in range(7)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0]
    assert rl_scale(LearnerConfig(), 10_000) == 1
    sft = SftConfig(decay_fraction=0.5)
    assert [sft_scale(sft, step, 4) for step in range(4)] == [1, 1, 1, 0.5]
