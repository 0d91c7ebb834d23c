"""How a template is used follows from what it shows; own small templates, one for each kind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast

from envs.errors import ConfigError, MissingError, TemplateError
from envs.messages import Message
from rollout.chat.findings import template_findings
from rollout.chat.loading import carried_template
from rollout.chat.template import PROBE_TOOL, ChatTemplate
from rollout.config import ModelConfig

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EMPTY_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
AFTER_CALL = (
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if messages[loop.index0 - 1].role == 'tool' or messages[loop.index0 - 1].tool_calls %}"
    "<|out|>{{ m.name }}: {{ m.content }}<|/out|>{% endif %}"
    "{% elif m.tool_calls %}<|im_start|>assistant\n"
    "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}<|call|>"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT_IDS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m.tool_calls %}[CALLS]{% for c in m.tool_calls %}"
    "{% if c.id|length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    "{{ c.function.arguments }}{{ c.id }}{% endfor %}<|im_end|>"
    "{% elif m.role == 'assistant' %} {{ m.content }}<|im_end|>"
    "{% elif m.tool_call_id|length != 9 %}{{ raise_exception('which call?') }}"
    "{% else %}[RESULT]{{ m.content }}[/RESULT]{% endif %}{% endfor %}"
)
ALTERNATING = (
    "{% for m in messages %}{% set odd = loop.index0 % 2 == 1 %}"
    "{% if m.role == 'system' or (m.role == 'user') == odd %}"
    "{{ raise_exception('user and assistant must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_TOOL = CHATML.replace(
    "<|im_start|>{{", "{% if m.role == 'tool' %}{% continue %}{% endif %}<|im_start|>{{", 1
)
ROLE_TOKENS = (
    "{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>"
    "\n{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RETURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|im_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = [
    *("<|call|>", "<|out|>", "<|/out|>", "<|return|>", "<|other|>"),
    *("[INST]", "[/INST]", "[CALLS]", "[RESULT]", "[/RESULT]"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
]
ASK = [Message("system", "be brief"), Message("user", "double 21")]
RESULT = Message("tool", "42", name="double")
SECOND = Message("tool", "43", name="halve")
ERROR = Message("tool", "no such tool")


@pytest.fixture(scope="session")
def made(tokenizer_with: MakeTokenizer) -> Callable[..., ChatTemplate]:
    """Makes a template from text over a tokenizer that has all tokens of these families."""

    def make(text: str, stops: str = "", **options: object) -> ChatTemplate:
        tokenizer = tokenizer_with(text)
        tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})  # type: ignore[dict-item]
        tokenizer.add_tokens(["<think>", "</think>"])
        ids = [tokenizer.convert_tokens_to_ids(stop) for stop in stops.split()]
        return ChatTemplate(tokenizer, stop_ids=ids, options=options)  # type: ignore[arg-type]

    return make


Made = Callable[..., ChatTemplate]


def shown(template: ChatTemplate, *messages: Message, last: str = "") -> str:
    """What is appended after a turn that ended with token `last`, by default the usual one."""
    end = template.structure_tokens[last] if last else template.eos_token_id
    return template.decode(template.continuation(messages, last_id=end))


def test_a_thought_in_the_last_answer_alone_does_not_matter(made: Made) -> None:
    thinking, quiet = made(EMPTY_THOUGHT), made(EMPTY_THOUGHT, enable_thinking=False)
    assert thinking.decode(thinking.prompt(ASK)).endswith("<|im_start|>assistant\n<think>\n")
    assert shown(thinking, RESULT) == (
        "\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert thinking.opens_thought
    assert shown(quiet, RESULT).endswith("assistant\n<think>\n\n</think>\n\n")
    assert not quiet.opens_thought


def test_an_answer_that_a_template_shows_only_after_a_call_follows_a_call(made: Made) -> None:
    template = made(AFTER_CALL)
    assert template.tool_role == "called"
    assert shown(template, RESULT, SECOND, last="<|call|>") == (
        "<|out|>double: 42<|/out|><|out|>halve: 43<|/out|><|im_start|>assistant\n"
    )
    assert shown(template, RESULT).startswith("<|call|><|out|>double: 42")
    assert template.end_of('<tool_call>{"name": "double"}</tool_call>') == template.call_end_id
    assert template.end_of("<think><tool_call></think> 42") == template.eos_token_id
    assert set(template.stop_token_ids) == {template.eos_token_id, template.call_end_id}


def test_an_error_without_a_call_is_a_user_turn_there(made: Made) -> None:
    template = made(AFTER_CALL)
    assert shown(template, ERROR) == (
        "\n<|im_start|>user\nno such tool<|im_end|>\n<|im_start|>assistant\n"
    )
    assert any("without a call" in note for note in template.notes)


def test_call_ids_are_as_strict_templates_want_them(made: Made) -> None:
    template = made(STRICT_IDS)
    assert template.tool_role == "called"
    assert shown(template, RESULT, SECOND) == "[RESULT]42[/RESULT][RESULT]43[/RESULT]"
    assert template.decode(template.prompt(ASK)) == "[INST]be brief\n\ndouble 21[/INST]"
    assert not template.system_role


@pytest.mark.parametrize("text", [DROPS_TOOL, ALTERNATING], ids=["dropped", "alternating"])
def test_an_answer_that_is_never_shown_is_a_user_turn(made: Made, text: str) -> None:
    template = made(text)
    assert shown(template, RESULT, SECOND) == (
        "\n<|im_start|>user\n42\n43<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "user turns" in template.notes[0]


def test_roles_alternate_where_they_must(made: Made) -> None:
    template = made(ALTERNATING)
    prompt = template.decode(template.prompt([*ASK, Message("user", "go")]))
    assert prompt == (
        "<|im_start|>user\nbe brief\n\ndouble 21\n\ngo<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(template.notes) == 3


def test_a_role_token_may_end_a_turn(made: Made) -> None:
    template = made(ROLE_TOKENS)
    tokens = template.structure_tokens
    assert {tokens["<|user|>"], tokens["<|observation|>"]} <= set(template.stop_token_ids)
    assert shown(template, RESULT, last="<|observation|>") == "\n42<|assistant|>"
    assert shown(template, RESULT, last="<|other|>") == "<|observation|>\n42<|assistant|>"
    assert template.decode(template.prompt(ASK)[-1:]) == "<|assistant|>"
    assert template.decode([*template.encode("a"), tokens["<|observation|>"]]) == "a"


def test_what_ends_the_last_turn_need_not_end_one_in_the_middle(made: Made) -> None:
    template = made(RETURNS, stops="<|return|>")
    assert template.eos_token_id == template.structure_tokens["<|return|>"]
    assert shown(template, RESULT).startswith("<|im_start|>tool\n42")
    cut = template.encode("cut")[-1]
    ended = template.decode(template.continuation([RESULT], last_id=cut))
    assert ended.startswith("<|im_end|><|im_start|>tool")


def test_every_token_that_the_model_stops_at_stops_a_turn(made: Made) -> None:
    template = made(CHATML, stops="<|other|> <|call|>")
    tokens = template.structure_tokens
    assert template.stop_token_ids == (
        tokens["<|im_end|>"],
        tokens["<|other|>"],
        tokens["<|call|>"],
    )
    assert template.decode([*template.encode("4"), tokens["<|other|>"]]) == "4"
    assert shown(template, RESULT, last="<|other|>").startswith("<|im_end|>\n<|im_start|>tool")


def test_a_later_round_may_be_opened_in_another_way(made: Made) -> None:
    text = CHATML.replace(
        "<|im_start|>{{ m.role }}",
        "{% if m.role == 'tool' %}{% set ns.round = ns.round + 1 %}#{{ ns.round }}{% endif %}"
        "<|im_start|>{{ m.role }}",
    )
    template = made("{% set ns = namespace(round=0) %}" + text)
    history = [*ASK, Message("assistant", "call"), RESULT]
    last = template.eos_token_id
    first, later = (
        template.decode(template.continuation([RESULT], last_id=last, history=past))
        for past in (ASK, history)
    )
    assert (first[:4], later[:4]) == ("\n#1<", "\n#2<")


def test_tools_are_shown_by_a_template_that_can(made: Made) -> None:
    able = made("{% if tools %}{{ tools|tojson }}{% endif %}" + CHATML)
    assert able.renders_tools
    assert '"probe_tool"' in able.decode(able.prompt(ASK, [PROBE_TOOL]))
    with pytest.raises(TemplateError, match="shows none"):
        made(CHATML).prompt(ASK, [PROBE_TOOL])


DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML


def test_a_date_is_the_same_on_every_day(made: Made) -> None:
    template = made(DATED)
    assert template.decode(template.prompt(ASK)).startswith("26 Jul 2024<|im_start|>")
    assert "2024-07-26" in " ".join(template.notes)
    other = made(DATED, strftime_now="2026-02-01")
    assert other.decode(other.prompt(ASK)).startswith("01 Feb 2026")


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"strftime_now": "today"}, "expected a date"), ({"messages": []}, "messages cannot be set")],
)
def test_an_option_that_cannot_be_is_refused(
    made: Made, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        made(CHATML, **options)


@pytest.fixture
def folder(tmp_path: Path, tokenizer_with: MakeTokenizer) -> Path:
    tokenizer_with(CHATML).save_pretrained(tmp_path)
    return tmp_path


def test_a_recipe_names_another_template(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text(CHATML.replace("{{ m.content", "<<{{ m.role }}>> {{ m.content"))
    own = ChatTemplate.load(folder)
    shipped = ChatTemplate.load(folder, ModelConfig(chat_template="chatml"))
    chosen = ChatTemplate.load(folder, ModelConfig(chat_template=str(mine)))
    assert shipped.prompt(ASK) == own.prompt(ASK)
    assert "<<user>> double" in chosen.decode(chosen.prompt(ASK))
    plain = ChatTemplate.load(folder, ModelConfig(chat_template="plain"))
    assert plain.decode(plain.prompt(ASK)).endswith("user:\ndouble 21<|im_end|>\nassistant:\n")
    with pytest.raises(MissingError, match="chatml, plain"):
        ChatTemplate.load(folder, ModelConfig(chat_template="chatlm"))


def test_stops_of_the_model_are_read_from_its_folder(folder: Path) -> None:
    start = ChatTemplate.load(folder).structure_tokens["<|im_start|>"]
    (folder / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": start}}))
    assert start in ChatTemplate.load(folder).stop_token_ids
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [start, 5]}))
    assert ChatTemplate.load(folder).stop_token_ids[1:] == (start, 5)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(TemplateError, match="expected JSON in"):
        ChatTemplate.load(folder)


def test_a_trained_model_carries_template_and_options(folder: Path) -> None:
    assert carried_template(folder, ModelConfig()) is None
    options = {"enable_thinking": False, "names": ["é", "b"], "nothing": None}
    text = EMPTY_THOUGHT + "{{ names|join('+') if names }}{{ '?' if nothing is none }}"
    (folder / "thinks.jinja").write_text(text)
    model = ModelConfig(chat_template=str(folder / "thinks.jinja"), template_options=options)
    before = ChatTemplate.load(folder, model)
    carried = carried_template(folder, model)
    assert carried is not None
    (folder / "chat_template.jinja").write_text(carried)
    after = ChatTemplate.load(folder)
    assert after.prompt(ASK) == before.prompt(ASK)
    assert after.decode(after.prompt(ASK)).endswith("</think>\n\né+b?")
    assert carried_template(folder, ModelConfig(template_options={"x": 1})) == (
        "{%- if x is not defined -%}{%- set x = 1 -%}{%- endif -%}\n" + carried
    )


def test_a_tokenizer_that_transformers_would_replace_is_taken_from_its_file(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    before = ChatTemplate.load(folder).prompt(ASK)
    settings["tokenizer_class"] = "LlamaTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    template = ChatTemplate.load(folder)
    assert template.prompt(ASK) == before
    assert template.decode(template.encode("a  b\n\té 你好 😀")) == "a  b\n\té 你好 😀"


def test_the_findings_say_what_a_folder_can_do(folder: Path) -> None:
    rows = {row.name: row for row in template_findings(folder)}
    assert {row.status for row in rows.values()} == {"ok"}
    assert rows["ends of turns"].detail == "<|im_end|>"
    assert rows["thinking"].detail == "left to the model"
    (folder / "chat_template.jinja").write_text(DATED.replace("m.role }}", "m.role|upper }}"))
    assert any("2024-07-26" in row.detail for row in template_findings(folder))
    (folder / "chat_template.jinja").write_text(DROPS_TOOL)
    rows = {row.name: row for row in template_findings(folder)}
    assert rows["tool answers"].status == "warn"
    (refused,) = template_findings(folder, ModelConfig(chat_template="nothing"))
    assert (refused.name, refused.status) == ("chat template", "missing")


def test_a_tokenizer_that_would_cut_and_fill_does_neither(folder: Path) -> None:
    before = ChatTemplate.load(folder).prompt(ASK)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=512)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert ChatTemplate.load(folder).prompt(ASK) == before


def test_a_tokenizer_that_loses_text_is_refused(tokenizer_with: MakeTokenizer) -> None:
    tokenizer = tokenizer_with(CHATML)
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    with pytest.raises(TemplateError, match=r"survive a round trip.*PreTrainedTokenizerFast"):
        ChatTemplate(tokenizer)
