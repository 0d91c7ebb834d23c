"""A language model small enough to train on a CPU in minutes, built from scratch in seconds."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from envs.tasksets.catalog.instances import VAGUE_DOC
from envs.tasksets.catalog.names import SYLLABLES
from envs.tasksets.catalog.operations import OPERATIONS, RESERVED_OPERATIONS
from envs.tasksets.catalog.quirks import (
    ARGUMENTS,
    BUSY,
    CLOSED,
    DOCUMENTED_ARGUMENT,
    KEYS,
    OPENING,
    SWAPPED,
    SWITCH_ARGUMENT,
)

MAX_POSITIONS = 1024
HIDDEN = 128
LAYERS = 3
HEADS = 4
FEED_FORWARD = 384

_PAD, _UNKNOWN, _END = "<|pad|>", "<|unknown|>", "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
_STRUCTURE = (
    '<tool_call>{"name": "',
    '", "key": "',
    '"}}</tool_call>',
    "<experience>",
    "</experience>",
    "<answer>",
    "</answer>",
    f"({DOCUMENTED_ARGUMENT}): ",
    "error: ",
    "error: ValueError: ",
    "needs key=",
    "use ",
    "got ",
    ", want ",
    "try ",
    ": try ",
    ": done ",
    ": guess ",
    ": found ",
    "want ",
    "; ",
    f"({DOCUMENTED_ARGUMENT}, {SWITCH_ARGUMENT}): ",
    f'", "{SWITCH_ARGUMENT}": "',
    SWAPPED,
    BUSY,
    CLOSED,
    OPENING,
    "off by ",
    "guess ",
    "call ",
    ": call ",
    "no trials left",
    "no calls left",
    "go",
    "trial",
    "direct",
    "free",
    ": ",
    ", ",
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tiny_model(path: Path, seed: int) -> Path:
    """Write a new Qwen3 and its tokenizer to the folder `path` as Hugging Face files; return it.

    The same seed gives the same bytes. The weights are float32 and untrained. Qwen3 normalises
    queries and keys; without that, learning to look up a name takes several times as long.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        model = Qwen3ForCausalLM(_config(tokenizer))
    model.save_pretrained(path, safe_serialization=True)
    return path


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: single digits, names of two syllables, a token per structural string.

    Merges are syllables only. So two tools never share a token because of their spelling, and a new
    name is two tokens that the model has seen in other names.
    """
    alphabet = ["\n", *(chr(code) for code in range(32, 127))]
    vocabulary = [_PAD, _UNKNOWN, _END, *_ROLES, *alphabet, *SYLLABLES]
    merges = [(syllable[0], syllable[1]) for syllable in SYLLABLES]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, unk_token=_UNKNOWN, fuse_unk=True))
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([_PAD, _UNKNOWN, _END, *_ROLES])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _phrases()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        eos_token=_END,
        chat_template=_CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _phrases() -> list[str]:
    """Return the strings that are one token each, wherever they occur."""
    openings = [f'", "arguments": {{"{name}": "' for name in (DOCUMENTED_ARGUMENT, *ARGUMENTS)]
    numbers = [text for number in range(1, 10) for text in (f"{number}. ", f" {number}. ")]
    words = [operation.name for operation in OPERATIONS + RESERVED_OPERATIONS]
    return [*_STRUCTURE, *openings, *numbers, *words, VAGUE_DOC, *ARGUMENTS, *KEYS]


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    vocabulary = tokenizer.get_vocab()
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=vocabulary[_PAD],
        bos_token_id=None,
        eos_token_id=vocabulary[_END],
        dtype="float32",
    )
