from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from envs.errors import ConfigError, TemplateError
from envs.messages import Message
from learner.pretrained.tiny_model import build_tiny_model
from rollout.chat.template import ChatTemplate

MakeTokenizer = Callable[[str | None], PreTrainedTokenizerFast]
Edit = Callable[[str], str | None]
ASK = [Message("system", "s"), Message("user", "q")]


def test_continuation_extends_the_prompt_as_the_template_would(template: ChatTemplate) -> None:
    answer, result = Message("assistant", "call"), Message("tool", "42 <b>é</b>")
    sampled = [*template.encode("call"), template.eos_token_id]
    grown = template.prompt(ASK) + sampled + template.continuation([result], last_id=sampled[-1])
    assert grown == template.prompt([*ASK, answer, result])


def test_a_cut_turn_is_closed_before_the_observation(template: ChatTemplate) -> None:
    result = Message("tool", "no")
    cut = template.encode("cut")
    grown = template.prompt(ASK) + cut + template.continuation([result], last_id=cut[-1])
    assert grown == template.prompt([*ASK, Message("assistant", "cut"), result])


def test_decode_leaves_only_the_end_of_turn_out(template: ChatTemplate) -> None:
    ids = [*template.encode("a <tool_call> é"), template.eos_token_id]
    assert template.decode(ids) == "a <tool_call> é"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (
            lambda t: t.replace("{% for", "{{ messages|length }}{% for"),
            "cannot extend its own prefix",
        ),
        (lambda t: t.replace("{{ m.role }}", "{{ loop.revindex }}{{ m.role }}"), "cannot extend"),
        (lambda t: t.replace("<|im_end|>", ""), "to end an assistant turn"),
        (
            lambda t: "{{ raise_exception('only users') }}",
            "for system, user, assistant and tool messages",
        ),
        (lambda t: None, "expected a chat template, found none"),
    ],
)
def test_a_template_that_would_drift_is_refused(
    chatml: str, tokenizer_with: MakeTokenizer, edit: Edit, reason: str
) -> None:
    with pytest.raises(TemplateError, match=reason):
        ChatTemplate(tokenizer_with(edit(chatml)))


def test_it_knows_whether_tool_answers_are_marked(
    chatml: str, tokenizer_with: MakeTokenizer
) -> None:
    mark = "{% if m.role == 'tool' %}<tool_response>{% endif %}{{ m.content }}"
    assert ChatTemplate(tokenizer_with(chatml.replace("{{ m.content }}", mark))).wraps_answers
    assert not ChatTemplate(tokenizer_with(chatml)).wraps_answers


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    folder = build_tiny_model(tmp_path / "model", 0)
    text = (folder / name).read_text()
    (folder / name).write_text(text[: len(text) // 2])
    with pytest.raises(ConfigError, match="expected") as caught:
        ChatTemplate.load(folder)
    assert "\n" not in str(caught.value)
