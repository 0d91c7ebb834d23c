"""The tiny model: a Hugging Face folder that loads, with a tokenizer made for copying."""

import hashlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from envs.messages import Message
from envs.tasksets.catalog.environment import CatalogEnvironment
from envs.tasksets.catalog.names import SYLLABLES, names_of
from envs.tasksets.catalog.teacher import trial_reply
from learner.pretrained.tiny_model import build_tiny_model, build_tokenizer
from rollout.chat.template import ChatTemplate
from rollout.prompts import CompactPrompts

CALL = '<tool_call>{"name": "kabi", "arguments": {"text": "407", "key": "blue"}}</tool_call>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", 7)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [str(tokenizer.convert_ids_to_tokens(token)) for token in ids]


def test_every_name_is_its_two_syllables_wherever_it_stands(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for name in names_of("heldout"):
        syllables = [name[:2], name[2:]]
        assert tokens(tokenizer, name) == syllables
        assert tokens(tokenizer, f"2. {name}(x): ")[1:3] == syllables
        assert tokens(tokenizer, CALL.replace("kabi", name))[1:3] == syllables
        assert tokens(tokenizer, f"1. {name}, use text")[1:3] == syllables


def test_structure_is_one_token_a_string_and_digits_are_single(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert tokens(tokenizer, CALL) == [
        '<tool_call>{"name": "',
        "ka",
        "bi",
        '", "arguments": {"text": "',
        "4",
        "0",
        "7",
        '", "key": "',
        "blue",
        '"}}</tool_call>',
    ]


def test_the_notes_of_several_goals_are_one_token_a_word(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert tokens(tokenizer, "got mirror, want mirror reverse: found 3. want reverse: try 4. ") == [
        *("got ", "mirror", ", want ", "mirror", " ", "reverse", ": found ", "3. "),
        *("want ", "reverse", ": try ", "4. "),
    ]
    assert tokens(tokenizer, "582>58 582>82")[:7] == list("582>58 ")
    assert tokens(tokenizer, "12 3. kabi; 23 ")[2:5] == [" 3. ", "ka", "bi"]


@pytest.mark.parametrize("text", [CALL, "error: unknown tool", "a  b\n\n{}~\t9", "", "bobobob"])
def test_decoding_gives_back_printable_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert decoded == text.replace("\t", "<|unknown|>")


def test_the_vocabulary_is_small_and_without_repeats(tokenizer: PreTrainedTokenizerFast) -> None:
    assert 150 < len(tokenizer) <= 300
    assert len(set(tokenizer.get_vocab().values())) == len(tokenizer)
    assert set(SYLLABLES) <= set(tokenizer.get_vocab())


def test_the_chat_template_extends_its_prefix_at_two_tokens_a_message(folder: Path) -> None:
    template = ChatTemplate.load(folder)
    message = Message("tool", "407")
    assert len(template.continuation([message], last_id=template.eos_token_id)) == 3 + 2 + 1
    system = [Message("system", "trial"), Message("user", "go")]
    assert len(template.prompt(system)) == 2 * 3 + 1


def test_a_task_and_its_first_turn_are_few_tokens(folder: Path) -> None:
    template = ChatTemplate.load(folder)
    for task in CatalogEnvironment().tasks("train", 0, 50):
        opening = CompactPrompts().opening(task, "trial", 8)
        assert len(template.prompt(opening)) <= 46
        assert len(template.encode(trial_reply(opening, 0))) <= 10


def test_the_folder_loads_and_the_seed_decides_the_weights(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    again, other = build_tiny_model(tmp_path / "a", 7), build_tiny_model(tmp_path / "b", 8)
    assert digest(folder) == digest(again) != digest(other)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_building_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build_tiny_model(tmp_path, 5)
    assert torch.equal(torch.rand(3), expected)
