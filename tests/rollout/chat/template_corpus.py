"""The chat templates of published models that TRL ships, each over a small tokenizer of its own."""

import re
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_SPECIAL = re.compile(
    r"<\|[^<>|\s'\"]+\|>|<\uff5c[^<>\s'\"]+\uff5c>|<\|[a-z_\"]+>|<[a-z_\"]+\|>|\[gMASK\]|<\|\"\|>"
    r"|</?think>|</?tool_call>|</?tool_response>|<(?:start|end)_of_(?:turn|utterance|image)>|<sop>"
)
_NOT_SPECIAL = re.compile(r"</?(?:think|tool_call|tool_response)>")

_ENDS: dict[str, tuple[str, ...]] = {
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek": ("<\uff5cend▁of▁sentence\uff5c>",),
    "gemma4": ("<eos>", "<turn|>", "<|tool_response>"),
    "diffusion_gemma": ("<eos>", "<turn|>", "<|tool_response>"),
    "gemma": ("<eos>", "<end_of_turn>"),
    "glm": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|endoftext|>", "<|call|>"),
    "idefics": ("<end_of_utterance>", "</s>"),
    "smolvlm": ("<end_of_utterance>",),
    "llama": ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
    "llava": ("</s>",),
    "muse": ("<|eot|>", "<|endoftext|>"),
    "phi": ("<|endoftext|>", "<|end|>", "<|assistant|>"),
}
"""What stops the models of a family; the first is the tokenizer's eos_token."""
_CHATML = ("<|im_end|>", "<|endoftext|>")


def template_files() -> list[Path]:
    """Return the chat templates of the installed trl."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))


def ends_of(name: str) -> tuple[str, ...]:
    """Return the texts of the tokens at which models with this template stop."""
    return next((ends for start, ends in _ENDS.items() if name.startswith(start)), _CHATML)


def corpus_tokenizer(name: str, template: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that has the special tokens of a template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = [*ends_of(name), *_SPECIAL.findall(template), "<bos>"]
    plain = [text for text in found if _NOT_SPECIAL.fullmatch(text)]
    tokenizer.add_special_tokens([text for text in dict.fromkeys(found) if text not in plain])
    tokenizer.add_tokens(list(dict.fromkeys(plain)))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=ends_of(name)[0],
        bos_token="<bos>",
        chat_template=template,
    )
