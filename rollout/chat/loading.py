"""What is read from files: tokenizers, the tokens at which a model stops, chat templates."""

import json
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from envs.errors import MissingError, TemplateError
from rollout.chat.rendering import DAY_OPTION
from rollout.chat.shipped import shipped_names, template_path
from rollout.config import ModelConfig

TOKENIZER_PROBE = "two  blanks,\n\nlines\tand tabs: é, 你好, 😀, 3.50 <b> it's I'll x=1"


def shipped_or_file(choice: str) -> str:
    """Return the text of a chat template: a shipped name, or else a file. Raises MissingError."""
    path = template_path(choice)
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(
            f"model.chat_template: expected a file, or one of {', '.join(shipped_names())}, found "
            f"{choice!r}: {error}"
        ) from error


def carried_template(folder: Path, model: ModelConfig) -> str | None:
    """Return the chat template that a model trained from `folder` has to carry, if that is another
    one than the folder's: the one that `model` chooses, with its options as defaults.
    """
    options = {name: value for name, value in model.template_options.items() if name != DAY_OPTION}
    if not model.chat_template and not options:
        return None
    if model.chat_template:
        text: Any = shipped_or_file(model.chat_template)
    else:
        text = load_tokenizer(folder).chat_template
        text = text.get("default") if isinstance(text, dict) else text
    lines = [_default(name, value) for name, value in options.items()]
    return "".join([*lines, str(text)])


def _default(name: str, value: JsonValue) -> str:
    """Return a line of Jinja that gives a variable a default."""
    given = f"{{%- set {name} = {_literal(value)} -%}}"
    return f"{{%- if {name} is not defined -%}}{given}{{%- endif -%}}\n"


def _literal(value: JsonValue) -> str:
    """Return a value as Jinja writes it."""
    match value:
        case None:
            return "none"
        case list():
            return f"[{', '.join(map(_literal, value))}]"
        case dict():
            pairs = (f"{_literal(key)}: {_literal(item)}" for key, item in value.items())
            return f"{{{', '.join(pairs)}}}"
        case _:
            return json.dumps(value, ensure_ascii=False)


def load_tokenizer(folder: Path, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder`, with another chat template if one is given.

    transformers may put another pre-tokenizer in the place of the one in tokenizer.json, according
    to `tokenizer_class`. Where that changes how a text is split, the file counts. Raises
    MissingError, and TemplateError for a folder that transformers cannot load it from.
    """
    if not (folder / "tokenizer_config.json").is_file():
        raise MissingError(
            f"expected a tokenizer in {folder}, found no tokenizer_config.json there: "
            "check the path of the model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not _as_in_file(tokenizer, folder / "tokenizer.json"):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise all kinds for a broken file
        told = " ".join(str(error).split()) or type(error).__name__
        raise TemplateError(
            f"expected a tokenizer that transformers can load in {folder}, found: {told}: repair "
            "the file that it names, or copy the model anew"
        ) from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def _as_in_file(tokenizer: PreTrainedTokenizerBase, file: Path) -> bool:
    """Whether a tokenizer splits texts as its tokenizer.json does."""
    if not file.is_file():
        return True
    stored = Tokenizer.from_file(str(file))
    stored.no_truncation()
    stored.no_padding()
    ids = stored.encode(TOKENIZER_PROBE, add_special_tokens=False).ids
    return ids == tokenizer.encode(TOKENIZER_PROBE, add_special_tokens=False)


def declared_stops(folder: Path) -> list[int]:
    """Return the ids at which the model in `folder` stops by itself: those of its generation
    config, or else of its config. Raises TemplateError for a file that is no JSON.
    """
    for name in ("generation_config.json", "config.json"):
        settings = _read(folder / name)
        nested = settings.get("text_config")
        for part in (settings, nested if isinstance(nested, dict) else {}):
            found = part.get("eos_token_id")
            if isinstance(found, int):
                return [found]
            if isinstance(found, list):
                return [number for number in found if isinstance(number, int)]
    return []


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise TemplateError(f"expected JSON in {file}, found {error}: repair the file") from error
    return settings if isinstance(settings, dict) else {}
