from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.errors import ConfigError, LearnerError, MissingError
from learner.batch import EpisodeBatch, predictable, read_episodes
from learner.packed.packing import balance, fill, pack, share_of_rank
from learner.packed.policy import load_policy
from rollout.episode import Phase

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


def alike(make_episode, make_table) -> EpisodeBatch:
    """A group that begins alike, an episode twice, one that is another's beginning; one apart."""
    lengths = [24, 24, 40, 32, 32, 28, 28]
    episodes = [
        make_episode(i, length=n, temperature=0.7 if i == 6 else 1.0) for i, n in enumerate(lengths)
    ]
    batch = read_episodes(make_table(episodes))
    ids = batch.token_ids_N.copy()
    for index in range(1, 7):
        ids[batch.rows(index)][:9] = ids[:9]
    ids[batch.rows(1)] = ids[batch.rows(0)]
    ids[batch.rows(2)][:24] = ids[batch.rows(0)]
    ids[batch.rows(4)][:20] = ids[batch.rows(3)][:20]
    return replace(batch, token_ids_N=ids)


def test_a_shared_beginning_is_computed_once_and_changes_no_gradient(
    llama_folder: Path, make_episode, make_table
) -> None:
    batch = alike(make_episode, make_table)
    mask_N = predictable(batch)
    weights_N = torch.from_numpy(np.random.default_rng(0).normal(size=len(mask_N))).float()
    packed = pack(batch, range(7), mask_N)
    assert len(packed.token_ids_U) == 24 + 0 + 16 + 23 + 12 + 19 + 28
    assert sorted(packed.sources_P) == np.flatnonzero(mask_N).tolist()
    together = load_policy(str(llama_folder), torch.float32, CPU)
    shared_P, entropies_P = together(packed)
    (shared_P * weights_N[packed.sources_P]).sum().backward()

    apart = load_policy(str(llama_folder), torch.float32, CPU)
    for index in range(7):
        one = pack(batch, [index], mask_N)
        alone_P, alone_entropies_P = apart(one)
        (alone_P * weights_N[one.sources_P]).sum().backward()
        within = np.isin(packed.sources_P, one.sources_P)
        torch.testing.assert_close(shared_P[within], alone_P, atol=2e-5, rtol=0)
        torch.testing.assert_close(entropies_P[within], alone_entropies_P, atol=2e-5, rtol=0)
    for (name, mine), (_, theirs) in zip(
        together.named_parameters(), apart.named_parameters(), strict=True
    ):
        # float32: sums of a few hundred products in another order
        torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-4, rtol=2e-4, msg=name)


def test_ranks_get_loads_that_differ_by_an_eighth_or_one_episode(make_episode, make_table) -> None:
    generator = np.random.default_rng(3)
    lengths = [*generator.integers(8, 40, 24).tolist(), 300, 200, 8, 8]
    episodes = [make_episode(i, group=f"g{i // 4}", length=n) for i, n in enumerate(lengths)]
    batch = read_episodes(make_table(episodes))
    for ranks in (2, 3, 5):
        shares = [share_of_rank(batch, range(28), ranks, rank, 64) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        assert sorted(i for share in shares for part in share for i in part) == list(range(28))
        loads = [sum(lengths[i] for part in share for i in part) for share in shares]
        assert max(loads) - min(loads) <= max(300, sum(lengths) / ranks / 8)
    even = read_episodes(
        make_table([make_episode(i, group=f"g{i // 8}", length=20 + i % 7) for i in range(64)])
    )
    loads = [
        sum(
            int(even.lengths_B[i])
            for part in share_of_rank(even, range(64), 4, rank, 64)
            for i in part
        )
        for rank in range(4)
    ]
    assert max(loads) <= 1.07 * min(loads)


def test_groups_stay_together_where_ranks_stay_balanced(make_episode, make_table) -> None:
    batch = read_episodes(
        make_table([make_episode(i, group=f"g{i % 32}", length=24) for i in range(64)])
    )
    ids = batch.token_ids_N.copy()
    for index in range(32, 64):
        ids[batch.rows(index)][:20] = ids[batch.rows(index - 32)][:20]
    batch = replace(batch, token_ids_N=ids)
    for rank in range(2):
        for part in share_of_rank(batch, range(64), 2, rank, 60):
            assert len(part) == 4  # two groups of 28 tokens: unshared they were 96
            assert sorted(index % 32 for index in part)[::2] == sorted(
                {index % 32 for index in part}
            )


def test_a_second_backward_pass_is_refused(llama_folder: Path, make_episode, make_table) -> None:
    batch = read_episodes(make_table([make_episode(0)]))
    policy = load_policy(str(llama_folder), torch.float32, CPU)
    logprobs_P, _ = policy(pack(batch, [0], predictable(batch)))
    logprobs_P.sum().backward(retain_graph=True)
    with pytest.raises(LearnerError, match="a second"):
        logprobs_P.sum().backward()


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


def forked(make_episode, make_table) -> EpisodeBatch:
    """Two episodes alike, of which the first forks twice: its prompt is written again, longer."""
    batch = read_episodes(make_table([make_episode(i, length=48) for i in range(2)]))
    ids, phases = batch.token_ids_N.copy(), batch.phases_N.copy()
    row = batch.rows(0)
    phases[row][24:32] = Phase.PROMPT
    phases[row][40:46] = Phase.PROMPT
    ids[row][24:30] = ids[row][:6]
    ids[row][40:44] = ids[row][:4]
    ids[batch.rows(1)][:6] = ids[row][:6]
    mask = np.isin(phases, [Phase.TRIAL, Phase.EXPERIENCE, Phase.EXECUTION])
    return replace(batch, token_ids_N=ids, phases_N=phases, loss_mask_N=mask)


def test_after_a_fork_a_token_is_predicted_from_what_the_policy_saw(
    llama_folder: Path, make_episode, make_table
) -> None:
    batch = forked(make_episode, make_table)
    mask_N = predictable(batch)
    packed = pack(batch, [0, 1], mask_N)
    assert [part.stop - part.start for part in batch.sequences(0)] == [24, 16, 8]
    assert (batch.longest(0), batch.longest(1)) == (24, 48)
    assert sorted(packed.sources_P) == np.flatnonzero(mask_N).tolist()
    policy = load_policy(str(llama_folder), torch.float32, CPU)
    logprobs_P, _ = policy(packed)
    plain = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    for index in (0, 1):
        for part in batch.sequences(index):
            ids_1T = torch.from_numpy(batch.token_ids_N[part].astype(np.int64))[None]
            with torch.no_grad():
                all_TV = torch.log_softmax(plain(ids_1T).logits[0].float(), -1)
            for position in np.flatnonzero(mask_N[part]):
                found = logprobs_P[packed.sources_P == part.start + position]
                expected = all_TV[position - 1, ids_1T[0, position]]
                torch.testing.assert_close(found[0], expected, atol=2e-5, rtol=0)
    owners = {
        int(number): {int(source >= 48) for source in packed.sources_P[packed.segments_P == number]}
        for number in packed.segments_P.unique()
    }
    assert sorted(owners.values(), key=str) == [{0}, {1}], "an episode is one segment of the loss"


def test_a_forked_episode_stays_whole_on_one_rank(make_episode, make_table) -> None:
    batch = forked(make_episode, make_table)
    shares = [share_of_rank(batch, range(2), 2, rank, 60) for rank in range(2)]
    assert sorted(i for share in shares for part in share for i in part) == [0, 1]
