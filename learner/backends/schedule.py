"""Learning-rate schedules: the factor on the configured rates at an optimizer step."""

from learner.config import LearnerConfig, SftConfig


def warmup(step: int, warmup_steps: int) -> float:
    """Rise linearly; the rate of the first step (0) is above zero."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def rl_scale(config: LearnerConfig, step: int) -> float:
    """Warm-up, then constant, or a linear fall to zero over `decay_steps`."""
    scale = warmup(step, config.warmup_steps)
    if config.decay_steps:
        scale *= max(0.0, 1 - max(0, step - config.warmup_steps) / config.decay_steps)
    return scale


def sft_scale(config: SftConfig, step: int, steps: int) -> float:
    """Warm-up, then constant, then a linear fall over the last `decay_fraction` of `steps`."""
    falling = config.decay_fraction * steps
    remaining = (steps - step) / falling if falling else 1.0
    return warmup(step, config.warmup_steps) * min(1.0, remaining)
