"""A custom loss: Simple Policy Optimization (SPO, arXiv 2401.16025) in place of PPO's clip.

Check it:  python examples/custom_loss.py
Use it:    trialrun train catalog --set learner.loss=examples.custom_loss:spo_loss

Start `trialrun` in the folder that holds `examples/`: every learner rank imports the function from
there. A rank tries it on three tokens at its start and refuses a wrong signature or result.
"""

import torch
from torch import Tensor

from learner.objective.losses import Clip, LossInputs, token_loss


def spo_loss(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Return SPO's loss per token, and which tokens are outside of the clip range.

    PPO's clip removes the gradient of a ratio that has moved too far. SPO's quadratic penalty
    instead pulls it back to 1 + clip_high (or 1 - clip_high for a negative advantage).
    """
    ratio_P = inputs.log_ratio_P.exp()
    distance_P = ratio_P - 1
    penalty_P = inputs.advantages_P.abs() * distance_P.square() / (2 * inputs.clip.high)
    outside_P = distance_P.detach().abs() > inputs.clip.high
    return penalty_P - ratio_P * inputs.advantages_P, outside_P


def gradients(ratios: list[float], *, advantage: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of SPO and of the built-in PPO loss with respect to the logprobs."""
    old_P = torch.full((len(ratios),), -1.0)
    found = []
    for loss in (spo_loss, lambda at: token_loss(at.log_ratio_P, at.advantages_P, at.clip)):
        logprobs_P = (old_P + torch.tensor(ratios).log()).requires_grad_()
        inputs = LossInputs(
            logprobs_P=logprobs_P,
            log_ratio_P=logprobs_P - old_P,
            advantages_P=torch.full_like(old_P, advantage),
            segments_P=torch.arange(len(ratios)),
            clip=Clip(low=0.2, high=0.2),
        )
        loss(inputs)[0].sum().backward()
        found.append(logprobs_P.grad)
    return found[0], found[1]


if __name__ == "__main__":
    RATIOS = [1.0, 1.1, 1.2, 1.5]
    spo, ppo = gradients(RATIOS, advantage=1.0)
    print("ratio  gradient of SPO  gradient of PPO")
    for ratio, ours, built_in in zip(RATIOS, spo.tolist(), ppo.tolist(), strict=True):
        print(f"{ratio:5.1f}  {ours:15.3f}  {built_in:15.3f}")
    assert torch.isclose(spo[0], ppo[0]), "on-policy both are the policy gradient"
    assert torch.isclose(spo[2], torch.tensor(0.0), atol=1e-5), "SPO is at rest at 1 + clip"
    assert spo[3] > 0 and ppo[3] == 0, "beyond it SPO pulls back, PPO has no gradient"
    print("ok")
