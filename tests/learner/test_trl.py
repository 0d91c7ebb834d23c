"""Our objective against TRL's own code: the same model, tokens, logprobs and rewards go through
GRPOTrainer and through the learner; losses, gradients and advantages must agree.

TRL's part is never written out here: its trainer is built as its users build it, only generation is
replaced by episodes that exist already, and options are set as attributes between cases.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from learner.batch import EpisodeBatch, read_episodes
from learner.config import LearnerConfig
from learner.objective.losses import aggregation_weights
from learner.objective.objective import Prediction, Targets, pack_loss
from learner.objective.selection import Selection, select
from learner.packed.packing import pack
from learner.packed.policy import PolicyModule, load_policy
from rollout.episode import Phase

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

LONGEST, TEMPERATURE = 40, 0.8
REWARDS = (1.0, 0.0, 0.3, 0.0, 1.0, 1.0, 0.9, 0.0)
LENGTHS = (24, 40, 33, 20, 52, 24, 28, 36)
CPU = torch.device("cpu")
OLD = {"ratio_reference": "behaviour"}
CORRECTED = {"ratio_reference": "proximal", "tis_cap": 1.5}


BETA = 0.2
"""Of every case that does not say otherwise: a penalty that a mask or a weight must leave alone."""


@dataclass(frozen=True)
class Case:
    """`theirs` are attributes of TRL's trainer, `ours` lines of [learner]."""

    theirs: dict[str, Any]
    ours: dict[str, Any]
    corrected: bool = False
    """Whether the sampler is corrected for: TRL's way with vLLM, our `proximal`."""


TRL_STD = {"advantage_eps": 1e-4, "advantage_ddof": 1, "drop_zero_variance": False}
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
SEQUENCE = {"importance_sampling_level": "sequence"}
CASES = {
    "grpo": Case({"loss_type": "grpo"}, {"aggregation": "sequence_mean"}),
    "bnpo": Case({"loss_type": "bnpo"}, {"aggregation": "token_mean"}),
    "dapo": Case({"loss_type": "dapo"}, {"aggregation": "token_mean"}),
    "dr_grpo": Case(
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"aggregation": "constant", "constant_length": LONGEST, "advantage": "grpo_no_std"},
    ),
    "batch std": Case(
        {"loss_type": "dapo", "scale_rewards": "batch"}, {"advantage": "grpo_batch_std"}
    ),
    "clip range": Case(
        {"loss_type": "dapo", "epsilon_low": 0.05, "epsilon_high": 0.1},
        {"clip_low": 0.05, "clip_high": 0.1},
    ),
    "dual clip": Case({"loss_type": "dapo", "args.delta": 1.3}, {"dual_clip": 1.3}),
    "cispo": Case(
        {"loss_type": "cispo", "epsilon_high": 1.2},
        {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.2},
    ),
    "gspo": Case(
        {"loss_type": "grpo", **SEQUENCE}, {"loss": "gspo", "aggregation": "sequence_mean"}
    ),
    "luspo": Case(
        {"loss_type": "luspo", **SEQUENCE},
        {"loss": "gspo", "aggregation": "constant", "constant_length": 1},
    ),
    "sapo": Case({"loss_type": "sapo"}, {"loss": "sapo", "aggregation": "sequence_mean"}),
    "no kl": Case({"loss_type": "dapo", "beta": 0.0}, {"kl_coef": 0.0}),
    "kl k3": Case({"loss_type": "dapo", "beta": 1.0}, {"kl_coef": 1.0, "kl_estimator": "k3"}),
    "kl unbiased": Case(
        {"loss_type": "dapo", "args.use_bias_correction_kl": True}, {"kl_unbiased": True}
    ),
    "entropy bonus": Case(
        {"loss_type": "dapo", "entropy_coef": 0.05, "_entropy_bonus_enabled": True},
        {"entropy_coef": 0.05},
    ),
    "off-policy mask": Case(
        {"loss_type": "dapo", "off_policy_mask_threshold": 0.05}, {"max_negative_kl": 0.05}
    ),
    "off-policy mask, kl unbiased": Case(
        {
            "loss_type": "dapo",
            "beta": 2.0,
            "off_policy_mask_threshold": 0.05,
            "args.use_bias_correction_kl": True,
        },
        {"max_negative_kl": 0.05, "kl_coef": 2.0, "kl_unbiased": True},
    ),
    "tis": Case(
        {"loss_type": "dapo", "vllm_importance_sampling_mode": "token_truncate"},
        CORRECTED,
        corrected=True,
    ),
    "tis two-sided": Case(
        {
            "loss_type": "dapo",
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_min": 0.8,
        },
        CORRECTED | {"tis_floor": 0.8},
        corrected=True,
    ),
    "icepop": Case(
        {
            "loss_type": "dapo",
            "vllm_importance_sampling_mode": "token_mask",
            "vllm_importance_sampling_clip_min": 0.8,
        },
        CORRECTED | {"tis_mode": "token_mask", "tis_floor": 0.8},
        corrected=True,
    ),
    "sequence tis": Case(
        {"loss_type": "dapo", "vllm_importance_sampling_mode": "sequence_truncate"},
        CORRECTED | {"tis_mode": "sequence_truncate"},
        corrected=True,
    ),
    "mis": Case(
        {"loss_type": "dapo", "vllm_importance_sampling_mode": "sequence_mask"},
        CORRECTED | {"tis_mode": "sequence_mask"},
        corrected=True,
    ),
    "gspo with mis": Case(
        {"loss_type": "grpo", **SEQUENCE, "vllm_importance_sampling_mode": "sequence_mask"},
        CORRECTED | {"loss": "gspo", "aggregation": "sequence_mean", "tis_mode": "sequence_mask"},
        corrected=True,
    ),
}


@dataclass(frozen=True)
class Played:
    """Two groups of four episodes, as both sides read them."""

    batch: EpisodeBatch
    rows: list[dict[str, Any]]

    def completion(self, index: int) -> slice:
        """The tokens after the prompt."""
        row = self.batch.rows(index)
        prompt = int((self.batch.phases_N[row] == Phase.PROMPT).sum())
        return slice(row.start + prompt, row.stop)


@pytest.fixture(scope="module")
def tables(llama_folder: Path, make_episode: Any, make_table: Any) -> pa.Table:
    """Episodes whose behaviour logprobs are the model's own with noise."""
    episodes = [
        make_episode(i, group=f"g{i // 4}", reward=reward, length=length, temperature=TEMPERATURE)
        for i, (reward, length) in enumerate(zip(REWARDS, LENGTHS, strict=True))
    ]
    batch = read_episodes(make_table(episodes))
    own_N = logprobs_of(load_policy(str(llama_folder), torch.float32, CPU), batch)
    generator = np.random.default_rng(5)
    noisy_N = own_N + generator.normal(0, 0.25, len(own_N)).astype(np.float32)
    noisy_N = np.minimum(noisy_N, 0)
    return make_table(
        [
            replace(episode, logprobs_T=tuple(noisy_N[batch.rows(i)].tolist()))
            for i, episode in enumerate(episodes)
        ]
    )


@pytest.fixture(scope="module")
def played(tables: pa.Table) -> Played:
    return Played(read_episodes(tables), [{"prompt": "?"} for _ in range(tables.num_rows)])


@pytest.fixture(scope="module")
def trainer(llama_folder: Path, played: Played, tmp_path_factory: Any) -> Iterator[Any]:
    """TRL's trainer over our episodes."""
    grpo: Any = resolve_name("trl:GRPOTrainer")
    dataset: Any = resolve_name("datasets:Dataset")

    class Replayed(grpo):
        def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
            return generation(played)

        def _calculate_rewards(self, *_: Any) -> Tensor:
            return torch.tensor(REWARDS)[:, None]

    arguments = resolve_name("trl:GRPOConfig")(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        per_device_train_batch_size=len(REWARDS),
        num_generations=4,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        epsilon=CLIP["clip_low"],
        epsilon_high=CLIP["clip_high"],
        beta=0.2,
        bf16=False,
        use_cpu=True,
        report_to=[],
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
    )
    made = Replayed(
        model=str(llama_folder),
        reward_funcs=lambda prompts, **_: [0.0] * len(prompts),
        args=arguments,
        train_dataset=dataset.from_list(played.rows),
        processing_class=tokenizer(),
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    yield made


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "</s>": 1, "?": 2} | {f"w{i}": i for i in range(3, 64)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="?")),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="?",
    )


def generation(played: Played) -> tuple[Any, ...]:
    """Our episodes as what TRL's generation returns; observations are its tool results."""
    batch = played.batch
    prompts, completions, masks, logprobs = [], [], [], []
    for index in range(len(batch)):
        after = played.completion(index)
        prompts.append(batch.token_ids_N[batch.rows(index).start : after.start].tolist())
        completions.append(batch.token_ids_N[after].tolist())
        masks.append(batch.loss_mask_N[after].astype(int).tolist())
        logprobs.append(np.nan_to_num(batch.logprobs_N[after]).tolist())
    return prompts, completions, masks, [""] * len(batch), logprobs, {}, None, None


def drift(model: Any) -> None:
    """Move every weight a little, the same way on both sides."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.004 * torch.randn(parameter.shape, generator=generator))


def padded(values_N: np.ndarray, played: Played) -> Tensor:
    rows = [torch.tensor(values_N[played.completion(i)]) for i in range(len(played.batch))]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).nan_to_num()


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def theirs(trainer: Any, played: Played, start: dict[str, Tensor], case: Case) -> tuple[Any, ...]:
    """Return TRL's advantages, loss and gradients."""
    settings: dict[str, Any] = {
        "use_vllm": case.corrected,
        "beta": BETA,
        "args.use_bias_correction_kl": False,
        **case.theirs,
    }
    if case.corrected:
        settings["vllm_importance_sampling_clip_max"] = CORRECTED["tis_cap"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            owner = trainer.args if name.startswith("args.") else trainer
            patch.setattr(owner, name.removeprefix("args."), value)
        trainer.model.load_state_dict(start)
        trainer.model.zero_grad()
        inputs = trainer._generate_and_score_completions(played.rows)
        if not case.corrected:
            inputs["old_per_token_logps"] = padded(played.batch.logprobs_N, played)
        drift(trainer.model)
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
    return inputs["advantages"], loss.detach(), gradients(trainer.model)


def logprobs_of(policy: PolicyModule, batch: EpisodeBatch) -> np.ndarray:
    """Return the model's logprobs of sampled tokens, NaN elsewhere."""
    one = pack(batch, range(len(batch)), batch.loss_mask_N)
    found_N = np.full(len(batch.token_ids_N), np.nan, np.float32)
    with torch.no_grad():
        found_N[one.sources_P] = policy(one)[0].numpy()
    return found_N


def ours(
    policy: PolicyModule, played: Played, start: dict[str, Tensor], case: Case
) -> tuple[Selection, Tensor, dict[str, Tensor]]:
    """Return our selection, loss and gradients."""
    clip = {} if case.ours.get("loss") == "sapo" else CLIP
    config = LearnerConfig.model_validate({**TRL_STD, **clip, **OLD, "kl_coef": BETA, **case.ours})
    batch = played.batch
    policy.policy.load_state_dict(start)
    policy.zero_grad()
    policy.entropy_gradient = config.entropy_gradient
    selection = select(batch, config)
    assert len(selection.kept) == len(batch)
    proximal_N = logprobs_of(policy, batch)
    one = pack(batch, selection.kept, selection.weights_N > 0)
    reference_P = torch.from_numpy(proximal_N[one.sources_P]) if config.kl_coef else None
    drift(policy.policy)
    logprobs_P, entropies_P = policy(one)
    targets = Targets(
        advantages_N=selection.advantages_N,
        weights_N=weights_of(batch, selection, config),
        behaviour_N=batch.logprobs_N,
        proximal_N=proximal_N,
    )
    share = pack_loss(one, Prediction(logprobs_P, entropies_P, reference_P), targets, config)
    share.loss.backward()
    return selection, share.loss.detach(), gradients(policy.policy)


def weights_of(batch: EpisodeBatch, selection: Selection, config: LearnerConfig) -> np.ndarray:
    rows = [batch.rows(index) for index in selection.kept]
    shares = aggregation_weights(
        [selection.weights_N[row] for row in rows], config.aggregation, config.constant_length
    )
    return np.concatenate(shares)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_trls(
    trainer: Any, llama_folder: Path, played: Played, name: str, record_property: Any
) -> None:
    case = CASES[name]
    policy = load_policy(str(llama_folder), torch.float32, CPU)
    start = {key: value.clone() for key, value in policy.policy.state_dict().items()}
    advantages, loss, expected = theirs(trainer, played, start, case)
    selection, mine, found = ours(policy, played, start, case)

    np.testing.assert_allclose(selection.advantages_B, advantages.numpy(), atol=2e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3, "a case without a gradient compares nothing"
    assert found.keys() == expected.keys()
    apart = max(float((found[key] - expected[key]).abs().max()) for key in expected)
    record_property("loss apart", abs(float(mine - loss)))
    record_property("gradient apart, of the largest", apart / largest)
    # float32: products over a sequence add up the rounding of its logprobs
    assert float(mine) == pytest.approx(float(loss), abs=2e-5)
    assert apart < 1e-4 * largest
