"""The format of a model, chosen from the text of its chat template and its vocabulary."""

from importlib.resources import files

import pytest

from rollout.formats.turn_format import choose_format

TEMPLATES = files("trl") / "chat_templates"
FAMILIES = {
    "qwen2_5": ("hermes", False),
    "qwen3": ("hermes", True),
    "qwen3_instruct_2507": ("hermes", False),
    "qwen3_5_think": ("qwen3_coder", True),
    "qwen3_6": ("qwen3_coder", True),
    "nemotron_3_nano": ("qwen3_coder", True),
    "llama3_1": ("llama3", False),
    "llama3_2": ("llama3", False),
    "glm4moe": ("glm", True),
    "deepseekv3": ("deepseek", True),
    "deepseek_r1_distill": ("deepseek", True),
    "gptoss": ("gpt_oss", True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_template_tells_the_family(name: str) -> None:
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    found = choose_format("auto", text, ())
    assert (found.tools.name, found.thinks) == FAMILIES[name]
    assert found.as_template


@pytest.mark.parametrize("name", ["llama3", "phi3", "gemma3", "lfm2"])
def test_a_template_of_no_known_format_gets_hermes(name: str) -> None:
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    found = choose_format("auto", text, ())
    assert (found.tools.name, found.as_template, found.thinks) == ("hermes", False, False)


def test_a_name_overrules_the_template() -> None:
    text = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    found = choose_format("llama3", text, ())
    assert (found.tools.name, found.as_template) == ("llama3", False)


@pytest.mark.parametrize(
    ("sign", "listed"), [("[TOOL_CALLS] [", True), ("[TOOL_CALLS]{{ name }}[ARGS]", False)]
)
def test_a_family_has_versions(sign: str, listed: bool) -> None:
    shape = choose_format("auto", sign, ("[THINK]", "[/THINK]")).tools.shape
    assert shape.startswith("[TOOL_CALLS][{" if listed else "[TOOL_CALLS]NAME[ARGS]")


@pytest.mark.parametrize(
    ("vocabulary", "opening"),
    [(("<think>", "</think>"), "<think>"), (("[THINK]", "[/THINK]"), "[THINK]"), ((), None)],
)
def test_a_model_thinks_if_its_vocabulary_can(
    vocabulary: tuple[str, ...], opening: str | None
) -> None:
    thinking = choose_format("auto", "{{ messages }}", vocabulary).thinking
    assert (thinking.opening if thinking else None) == opening
