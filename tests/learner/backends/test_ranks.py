"""Real DeepSpeed on the CPU: ZeRO 0 to 3 with one and two ranks; each world starts once."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.batch import predictable, read_episodes
from rollout.chat.loading import shipped_or_file
from rollout.episode import Episode, Outcome

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 240
STAGES = range(4)
Found = dict[int, list[dict[str, Any]]]
MakeEpisode = Callable[..., Episode]


def episodes_of(make: MakeEpisode) -> dict[str, Sequence[Episode]]:
    even = [
        make(i, group=f"g{i // 4}", reward=float(i % 4 == 0), length=20 + 4 * (i % 5))
        for i in range(12)
    ]
    lengths = [200, 12, 12, 16, 12, 12]
    uneven = [make(20 + i, reward=float(i % 2), length=n) for i, n in enumerate(lengths)]
    poison = [
        make(30 + i, reward=float(i % 2), temperature=1e-40 if i == 0 else 1.0) for i in range(4)
    ]
    lone = [make(40, reward=1.0), make(41, reward=0.0, temperature=0.0)]
    nothing = [make(50, reward=1.0), make(51, reward=None, outcome=Outcome.INFRA_FAILED)]
    return {"even": even, "uneven": uneven, "poison": poison, "lone": lone, "nothing": nothing}


def run_world(folder: Path, world_size: int) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(Path(__file__).with_name("rank_main.py"))
    ranks = []
    for rank in range(world_size):
        command = [sys.executable, script, str(rank), str(world_size), str(port), str(folder)]
        with (folder / f"log{world_size}.{rank}").open("w") as log:
            ranks.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
            )
    try:
        codes = [rank.wait(timeout=DEADLINE_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    logs = [(folder / f"log{world_size}.{rank}").read_text()[-3000:] for rank in range(world_size)]
    assert codes == [0] * world_size, "\n".join(logs)
    out = folder / f"world{world_size}"
    return [json.loads((out / f"found{rank}.json").read_text()) for rank in range(world_size)]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, make_episode, make_table
) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(llama_folder, folder / "model")
    for name, episodes in episodes_of(make_episode).items():
        table = make_table(episodes)
        with pa.ipc.new_file(str(folder / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    """What each rank of the worlds of one and of two ranks reported."""
    return {world_size: run_world(folder, world_size) for world_size in (1, 2)}


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_and_stages_learn_the_same(found: Found, folder: Path, stage: int) -> None:
    losses = found[1][0]["stage0"]["losses"]
    reference = torch.load(folder / "world1" / "weights0.pt")
    start = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    for world_size, ranks in found.items():
        for rank in ranks:
            np.testing.assert_allclose(rank[f"stage{stage}"]["losses"], losses, atol=2e-5)
        trained = torch.load(folder / f"world{world_size}" / f"weights{stage}.pt")
        assert trained.keys() == reference.keys()
        assert "lm_head.weight" not in trained
        for name, tensor in reference.items():
            apart = (trained[name] - tensor).abs().mean()
            assert apart < 0.01 * (tensor - start[name]).abs().mean(), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_run_repeats_bit_for_bit(found: Found, world_size: int, stage: int) -> None:
    for rank in found[world_size]:
        seen = rank[f"stage{stage}"]
        assert seen["resumed_at"] == 2
        assert seen["resumed_loss"] == seen["losses"][2]
        assert seen["resumed_exactly"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_not_a_number_is_a_typed_error_on_every_rank_and_harms_nothing(
    found: Found, world_size: int, stage: int
) -> None:
    for rank in found[world_size]:
        assert "weights are as before" in rank[f"stage{stage}"]["poison"]
        assert rank[f"stage{stage}"]["unharmed"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_without_episodes_does_not_stop_the_others(found: Found, stage: int) -> None:
    for rank in found[2]:
        assert rank[f"stage{stage}"]["lone"]["trained_episodes"] == 1
        assert rank[f"stage{stage}"]["nothing"]["optimizer_steps"] == 0


def test_a_step_reports_what_it_did(found: Found) -> None:
    alone, pair = found[1][0]["stage1"], found[2][0]["stage1"]
    assert found[2][1]["stage1"]["annotated"] is None
    assert len(alone["annotated"]) == 12
    for mine, theirs in zip(alone["annotated"], pair["annotated"], strict=True):
        assert mine["loss_positions"] == theirs["loss_positions"]
        np.testing.assert_allclose(mine["trainer_logprobs"], theirs["trainer_logprobs"], atol=1e-5)
    timing = {"seconds", "sequence_tokens_per_s"}
    for name in alone["metrics"].keys() - timing:
        assert pair["metrics"][name] == pytest.approx(
            alone["metrics"][name], rel=1e-3, abs=1e-6, nan_ok=True
        ), name
    assert 0 < alone["metrics"]["start_entropy"] <= math.log(64)
    assert alone["metrics"]["grad_norm"] > 0.5  # so that the clip took part in what is compared
    assert alone["metrics"]["mismatch"] > 0


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_export_loads_in_transformers_with_equal_logprobs(
    found: Found, folder: Path, world_size: int, stage: int
) -> None:
    out = folder / f"world{world_size}"
    model = AutoModelForCausalLM.from_pretrained(out / f"export{stage}")
    assert (out / f"export{stage}" / "tokenizer.json").read_text() == "{}"
    carried = (out / f"export{stage}" / "chat_template.jinja").read_text()
    assert carried == shipped_or_file("chatml")
    assert not list((out / f"export{stage}").glob("*.bin"))
    with pa.ipc.open_file(folder / "even.arrow") as reader:
        batch = read_episodes(reader.read_all())
    mask_N = predictable(batch)
    for rank in range(world_size):
        for index, mine in enumerate(
            torch.load(out / f"logprobs{stage}.{rank}.pt", weights_only=False)
        ):
            row = batch.rows(index)
            ids = torch.from_numpy(batch.token_ids_N[row].astype(np.int64))
            logits = model(input_ids=ids[None]).logits[0, :-1]
            theirs = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0].detach().numpy()
            mask = mask_N[row]
            np.testing.assert_allclose(mine[mask], theirs[mask[1:]], atol=1e-4)
            assert np.isnan(mine[~mask]).all()


def test_a_checkpoint_that_does_not_fit_is_refused(found: Found) -> None:
    for ranks in found.values():
        refusals = ranks[0]["refusals"]
        assert refusals["checkpoint0"].startswith(
            "ConfigError: expected a checkpoint with zero_stage 1"
        )
        assert refusals["unfinished"].startswith("LearnerError: expected a complete checkpoint")
        assert refusals["nowhere"].startswith("MissingError")


def test_ranks_with_different_tables_say_so(found: Found) -> None:
    assert found[1][0]["disagreement"] == ""
    for rank in found[2]:
        assert "different tables" in rank["disagreement"]


def test_every_objective_runs_on_every_stage(found: Found) -> None:
    for ranks in found.values():
        seen = ranks[0]["options"]
        assert seen["proximal"]["optimizer_steps"] == 4
        assert seen["proximal"]["mismatch"] == pytest.approx(
            ranks[0]["stage1"]["metrics"]["mismatch"], rel=1e-3
        )
        assert seen["reference"]["reference_kl"] > 0  # the second minibatch has left the start
        assert seen["gspo"]["grad_norm"] > 0
        assert seen["checkpointing"]["loss"] == pytest.approx(
            ranks[0]["stage3"]["metrics"]["loss"], abs=1e-5
        )


def test_ranks_with_more_logits_than_others_do_not_wait_for_ever(found: Found) -> None:
    for ranks in found.values():
        whole, chunked = (ranks[0]["chunks"][name] for name in ("whole", "chunked"))
        assert whole["grad_norm"] > 0
        for name in ("loss", "grad_norm", "start_entropy", "mismatch"):
            assert chunked[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("optimizer", ["sft", "muon"])
def test_sft_lowers_the_loss_alike_on_one_and_two_ranks(found: Found, optimizer: str) -> None:
    alone, pair = found[1][0][optimizer], found[2][0][optimizer]
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.3
    for mine, theirs in zip(alone, pair, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=5e-3)


def test_sft_goes_on_after_a_step_that_is_not_finite(found: Found) -> None:
    """Eight steps, of which the two with the poisoned episode are skipped."""
    for ranks in found.values():
        assert len(ranks[0]["poisoned_sft"]) == 6
        assert all(rank["poisoned_sft"] == ranks[0]["poisoned_sft"] for rank in ranks)


def test_sft_goes_on_from_its_checkpoint_bit_for_bit(found: Found) -> None:
    for ranks in found.values():
        resumed = ranks[0]["resumed_sft"]
        without, again = resumed["told"]
        assert resumed["exactly"]
        assert again == without
        assert len(again) == 3
        assert again[-1][0] + 2 - again[-1][3] == 8, "skipped before and after are counted"


def test_bfloat16_trains(found: Found) -> None:
    for ranks in found.values():
        assert ranks[0]["bfloat16"]["loss"] == pytest.approx(
            ranks[0]["stage2"]["metrics"]["loss"], abs=0.05
        )
        assert ranks[0]["bfloat16"]["grad_norm"] > 0
