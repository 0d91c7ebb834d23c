"""The chat templates of published models that TRL ships, each over a small tokenizer of its own."""

import re
from collections.abc import Sequence
from datetime import date
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs.messages import Message
from rollout.chat.template import ChatTemplate

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


def corpus_template(name: str, text: str) -> tuple[ChatTemplate, PreTrainedTokenizerFast]:
    """Return a template over its tokenizer. Raises TemplateError."""
    tokenizer = corpus_tokenizer(name, text)
    stops = [int(tokenizer.convert_tokens_to_ids(end)) for end in ends_of(name)]  # type: ignore[arg-type]
    return ChatTemplate(tokenizer, stop_ids=stops), tokenizer


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


ASKED = ("SYSTEM-TEXT", "QUESTION-TEXT")
ROUNDS: tuple[tuple[Message, ...], ...] = (
    (Message("tool", "RESULT-1", name="double"),),
    (Message("tool", "RESULT-2", name="double"), Message("tool", "RESULT-3", name="halve")),
    (Message("tool", "ERROR-1"),),
    (Message("user", "GO-ON"),),
    (Message("tool", "RESULT-4", name="halve"),),
)
"""What follows the answers of a dialogue; an error without a name answers a turn without a call."""
_MARK = re.compile(r"ANSWER-\d")
_THOUGHT = re.compile(r"\s*(?:<think>)?\s*(?:</think>)?\s*$")
_OWN_END = re.compile(r"(?:</\w+>|[\s\"'}\]])*")


@cache
def judged(file: Path) -> tuple[ChatTemplate, list[str]]:
    """Return a template, and where it is wrong. Raises TemplateError for one that is refused."""
    template, tokenizer = corpus_template(file.stem, file.read_text("utf-8"))
    return template, differences(template, tokenizer)


def differences(template: ChatTemplate, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return where prompt, sampled answers and continuations differ from the real rendering of the
    whole dialogue.

    How an answer itself is rendered does not count: its header, thoughts, the call around it, the
    token that ends it.
    """
    history = [Message("system", ASKED[0]), Message("user", ASKED[1])]
    appended = [template.decode(template.prompt(history))]
    for number, followers in enumerate(ROUNDS):
        called = bool(followers[0].name)
        last = template.call_end_id if called else template.eos_token_id
        ids = template.continuation(followers, last_id=last, history=history)
        appended.append(template.decode(ids))
        history += [Message("assistant", f"ANSWER-{number}"), *followers]
    real = tokenizer.apply_chat_template(
        _rows(template, history),
        tokenize=False,
        add_generation_prompt=True,
        strftime_now=lambda form: date(2024, 7, 26).strftime(form),
    )
    rendered = _MARK.split(str(real))
    if len(rendered) != len(appended):
        return [f"{len(appended)} parts are {len(rendered)} in {real!r}"]
    texts = [ASKED, *(tuple(message.content for message in followers) for followers in ROUNDS)]
    return [
        f"appended {ours!r}, rendered {theirs!r}"
        for ours, theirs, told in zip(appended, rendered, texts, strict=True)
        if not _agree(template, ours, theirs, told)
    ]


def _agree(template: ChatTemplate, ours: str, theirs: str, told: Sequence[str]) -> bool:
    ours = _THOUGHT.sub("", ours)
    ended, found, opened = theirs.partition(ours)
    own = "".join(re.split("|".join(map(re.escape, template.structure_tokens)), ended))
    return (
        bool(found)
        and all(ours.count(text) == 1 for text in told)
        and _OWN_END.fullmatch(own) is not None
        and not any(text in opened for text in told)
    )


def _rows(template: ChatTemplate, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the dialogue as someone would write it down for this template."""
    rows: list[dict[str, Any]] = []
    for message in messages:
        name = message.name if template.tool_role != "user" else ""
        role = message.role
        if role == "tool" and (template.tool_role == "user" or _needs_call(template, name)):
            role = "user"
        if role == "tool" and template.tool_role.startswith("called"):
            rows.append(_answered_call(template, rows, message))
        elif rows and role == rows[-1]["role"] == "user":
            rows[-1]["content"] += f"\n{message.content}"
        elif role == "user" and not template.system_role and rows[0]["role"] == "system":
            rows[0] = {"role": "user", "content": f"{rows[0]['content']}\n\n{message.content}"}
        else:
            rows.append({"role": role, "content": message.content} | _named(name))
    for row in rows if template.takes_parts else ():
        row["content"] = [{"type": "text", "text": row["content"]}]
    return rows


def _needs_call(template: ChatTemplate, name: str) -> bool:
    return template.tool_role.startswith("called") and not name


def _named(name: str) -> dict[str, str]:
    return {"name": name} if name else {}


def _answered_call(
    template: ChatTemplate, rows: list[dict[str, Any]], message: Message
) -> dict[str, Any]:
    """Return the row of a tool's answer, and give the assistant before it the call."""
    asking = next(row for row in reversed(rows) if row["role"] == "assistant")
    calls = asking.setdefault("tool_calls", [])
    if not calls or template.tool_role == "called":
        text = asking["content"] or calls[-1]["function"]["arguments"]["x"]
        for call in calls:
            call["function"]["arguments"] = {"x": "earlier"}
        function = {"name": message.name, "arguments": {"x": text}}
        calls.append({"type": "function", "id": f"id{len(calls):07d}", "function": function})
        asking["content"] = ""
    return {
        "role": "tool",
        "content": message.content,
        "name": message.name,
        "tool_call_id": calls[-1]["id"],
    }
