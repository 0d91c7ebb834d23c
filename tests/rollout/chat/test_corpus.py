"""Published chat templates: each is accepted and right, or refused with a reason."""

from pathlib import Path

import pytest

from envs.messages import Message
from rollout.chat.template import ChatTemplate
from tests.rollout.chat.template_corpus import (
    corpus_tokenizer,
    differences,
    judged,
    template_files,
)
from tests.rollout.chat.template_table import PAGE, with_table

FILES = template_files()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_appended_is_what_the_template_renders(file: Path) -> None:
    _, wrong = judged(file)
    assert wrong == []


def test_there_are_enough_templates() -> None:
    assert len(FILES) >= 72


def test_the_table_in_the_documentation_is_current() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_table(page), "type: python -m tests.rollout.chat.template_table"
    assert page.count("| right |") >= 45


@pytest.mark.parametrize("enable_thinking", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_training"])
def test_qwen3_thinks_or_not(name: str, *, enable_thinking: bool) -> None:
    text = next(file for file in FILES if file.stem == name).read_text("utf-8")
    tokenizer = corpus_tokenizer(name, text)
    template = ChatTemplate(tokenizer, options={"enable_thinking": enable_thinking})
    assert not template.opens_thought
    assert ("</think>" in template.generation_prompt) is not enable_thinking
    answer = template.continuation([Message("tool", "42")], last_id=template.eos_token_id)
    assert template.decode(answer).startswith(
        "\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n"
    )


def test_a_template_that_appends_something_else_is_found_out() -> None:
    text = next(file for file in FILES if file.stem == "qwen3").read_text("utf-8")
    tokenizer = corpus_tokenizer("qwen3", text)
    tokenizer.chat_template = text.replace("\\n<tool_response>", "\\n\\n<tool_response>")
    assert len(differences(ChatTemplate(corpus_tokenizer("qwen3", text)), tokenizer)) == 4
