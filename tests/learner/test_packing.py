from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.errors import ConfigError, MissingError
from learner.batch import predictable, read_episodes
from learner.packing import balance, fill, pack, share_of_rank
from learner.policy import load_policy

CPU = torch.device("cpu")


def test_balance_deals_the_longest_first() -> None:
    assert balance([5, 9, 4, 3], 2) == [[1, 3], [0, 2]]


def test_fill_never_splits_and_never_overfills() -> None:
    lengths = [5, 9, 4, 3, 20]
    bins = fill(lengths, 10)
    assert sorted(item for items in bins for item in items) == [0, 1, 2, 3, 4]
    assert all(sum(lengths[i] for i in items) <= 10 or len(items) == 1 for items in bins)
    assert len(bins) == 4


def test_every_rank_has_as_many_micro_batches(make_episode, make_table) -> None:
    lengths = [80, 12, 12, 12, 12, 12, 12]
    batch = read_episodes(make_table([make_episode(i, length=n) for i, n in enumerate(lengths)]))
    shares = [share_of_rank(batch, range(7), 2, rank, 24) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == 3
    assert sorted(i for share in shares for part in share for i in part) == list(range(7))


def test_packed_logprobs_are_those_of_each_episode_alone(
    llama_folder: Path, make_episode, make_table
) -> None:
    episodes = [make_episode(i, length=16 + 9 * i, temperature=0.5 + 0.5 * i) for i in range(3)]
    batch = read_episodes(make_table(episodes))
    policy = load_policy(str(llama_folder), torch.float32, CPU)
    packed = pack(batch, [2, 0, 1], predictable(batch))
    logprobs_P, entropies_P = policy(packed)

    plain = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    expected, entropies = (
        np.full_like(batch.logprobs_N, np.nan),
        np.full_like(batch.logprobs_N, np.nan),
    )
    total = torch.zeros(())
    for index, episode in enumerate(episodes):
        ids = torch.tensor([episode.token_ids_T])
        logits = plain(input_ids=ids).logits[0, :-1] / episode.sampling.temperature
        alone = torch.log_softmax(logits, -1)
        chosen = alone.gather(1, ids[0, 1:, None])[:, 0]
        mask = torch.tensor(episode.loss_mask_T[1:])
        total = total + chosen[mask].sum()
        row = slice(batch.rows(index).start + 1, batch.rows(index).stop)
        expected[row] = chosen.detach().numpy()
        entropies[row] = -(alone.exp() * alone).sum(-1).detach().numpy()
    np.testing.assert_allclose(logprobs_P.detach().numpy(), expected[packed.sources_P], atol=2e-5)
    np.testing.assert_allclose(entropies_P.numpy(), entropies[packed.sources_P], atol=2e-5)

    logprobs_P.sum().backward()
    total.backward()
    for (name, mine), (_, theirs) in zip(
        policy.policy.named_parameters(), plain.named_parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-3, rtol=1e-3, msg=name)


def test_logits_in_chunks_change_nothing(llama_folder: Path, make_episode, make_table) -> None:
    batch = read_episodes(make_table([make_episode(0, length=60)]))
    packed = pack(batch, [0], predictable(batch))
    policy = load_policy(str(llama_folder), torch.float32, CPU)
    whole, _ = policy(packed)
    whole.sum().backward()
    table: Any = policy.policy.get_input_embeddings()
    gradient = table.weight.grad.clone()
    policy.zero_grad()
    policy.chunk_logits = 64 * 7
    chunked, _ = policy(packed)
    chunked.sum().backward()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(table.weight.grad, gradient, atol=1e-3, rtol=1e-3)


def test_the_first_token_is_never_predicted(make_episode, make_table) -> None:
    batch = read_episodes(make_table([make_episode(0), make_episode(1)]))
    batch = replace(batch, loss_mask_N=np.ones_like(batch.loss_mask_N))
    assert predictable(batch)[batch.offsets[:-1]].tolist() == [False, False]


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nowhere"):
        load_policy(str(tmp_path / "nowhere"), torch.float32, CPU)


def test_a_head_that_bends_logits_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    config = (llama_folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace("{", '{"final_logit_softcapping": 30.0,', 1)
    )
    with pytest.raises(ConfigError, match="final_logit_softcapping"):
        load_policy(str(tmp_path), torch.float32, CPU)
