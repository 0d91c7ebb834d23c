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


def test_a_dual_clip_below_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="dual_clip"):
        LearnerConfig(dual_clip=0.5)


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
