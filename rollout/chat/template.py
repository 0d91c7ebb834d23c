"""Chat templates as append-only token streams: a prompt, then only continuations."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from envs.errors import TemplateError
from envs.messages import Message
from envs.tools import JsonObject
from rollout.chat.encoding import TextCodec
from rollout.chat.loading import declared_stops, load_tokenizer, shipped_or_file
from rollout.chat.probing import OPENING, Prober
from rollout.chat.rendering import Renderer, ToolRole, Turn
from rollout.chat.world_probes import check_plain_text, check_round_trip
from rollout.chat.world_text import Hiding
from rollout.config import ModelConfig

_CALL = re.compile(
    r"<tool_call>|<\|tool_call>|\[TOOL_CALLS\]|<\uff5ctool\u2581call| to=functions\."
)
"""What a tool call looks like in the formats of the families."""
_AS_USER = "tool answers are sent as user turns: the template shows no other"
_AFTER_CALL = (
    "tool answers follow a call that the template renders; without a call, as after an invalid "
    "turn, they are user turns"
)
_NO_SYSTEM = (
    "the system text is the beginning of the first user turn: the template has no system role"
)
_JOINED = "user turns in a row are joined: the template wants roles to alternate"
PROBE_TOOL: JsonObject = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "PROBE-DESCRIPTION",
        "parameters": {
            "type": "object",
            "properties": {"value": {"type": "string", "description": "PROBE-VALUE"}},
            "required": ["value"],
        },
    },
}


class ChatTemplate:
    """A tokenizer's chat template, proven to be append-only and to show what it is given.

    Sampled text is never tokenised again: `prompt` returns the ids at the start of an episode, and
    `continuation` the ids after a completion, so an episode's ids are only ever appended to. How
    the template would render the completion itself is never asked. Text of the world becomes no
    control token. Raises TemplateError for a template that cannot be used so.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        options: Mapping[str, JsonValue] | None = None,
        stop_ids: Iterable[int] = (),
    ) -> None:
        """`options` are the template's variables, `stop_ids` where the model stops besides at the
        tokenizer's eos_token.
        """
        self._tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise TemplateError(
                "expected a chat template, found none: set model.chat_template to a file or to "
                "`chatml`, or `chat_template` in tokenizer_config.json"
            )
        self._codec = TextCodec(tokenizer)
        self._renderer = Renderer(tokenizer, options or {})
        eos = tokenizer.eos_token_id
        declared = [*([eos] if isinstance(eos, int) else []), *stop_ids]
        self._prober = Prober(self._renderer, self._codec, self._texts(declared))
        self._frame = self._prober.frame()
        self.eos_token_id = self._codec.controls[self._frame.end_of_turn]
        """The token that ends a turn in this template."""
        self.call_end_id = self._codec.controls[self._frame.end_of_call]
        """The token that ends a turn with a tool call; another one for GLM, gpt-oss and Gemma 4."""
        ends = [self._codec.controls[text] for text in self._frame.stops]
        self.stop_token_ids = tuple(dict.fromkeys([*ends, *declared]))
        """All tokens at which a turn stops: those of the template, of the tokenizer, of the model.
        """
        self.generation_prompt = self._prober.generation_prompt(self._frame.form)
        """What opens a turn of the policy; a model that thinks may find a thought opened in it."""
        self.wraps_answers = "<tool_response>" in self._followed_by(Message("tool", "?", name="?"))
        self.renders_tools = self._finds_tools()
        """Whether the template shows the tools that `prompt` is given."""
        self.lost_signs = check_round_trip(self._codec)
        """Signs of a probe that the tokenizer knows only as its unknown token."""
        check_plain_text(self)

    @classmethod
    def load(cls, model_path: Path, model: ModelConfig | None = None) -> "ChatTemplate":
        """Load the tokenizer in folder `model_path`, with the template and the options of `model`
        if that names some. Raises MissingError, TemplateError, ConfigError.
        """
        section = model or ModelConfig()
        text = shipped_or_file(section.chat_template) if section.chat_template else None
        return cls(
            load_tokenizer(model_path, text),
            options=section.template_options,
            stop_ids=declared_stops(model_path),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is done differently from what a reader may expect, a sentence each."""
        form, signs = self._frame.form, self.lost_signs
        told = (
            (form.tools == "user", _AS_USER),
            (form.tools.startswith("called"), _AFTER_CALL),
            (not form.system_role, _NO_SYSTEM),
            (form.joined_users, _JOINED),
            (self._shows_date(), f"the template shows the date: it is always {self._renderer.day}"),
            (bool(signs), f"the tokenizer has no tokens for {signs}: they become its unknown one"),
        )
        return tuple(note for applies, note in told if applies)

    @property
    def tool_role(self) -> ToolRole:
        """How a tool's answer is sent; see `Form.tools`."""
        return self._frame.form.tools

    @property
    def system_role(self) -> bool:
        """Whether the template has a system role; else the first user turn begins with its text."""
        return self._frame.form.system_role

    @property
    def takes_parts(self) -> bool:
        """Whether content is given to the template as a list of parts."""
        return self._frame.form.parts

    @property
    def opens_thought(self) -> bool:
        """Whether a turn of the policy starts inside of a thought that the template opened."""
        opened = self.generation_prompt
        return opened.rfind("<think>") > opened.rfind("</think>")

    @property
    def vocab_size(self) -> int:
        """Number of token ids, including added tokens."""
        return len(self._tokenizer)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts that become special tokens, for example roles and ends of turns."""
        added = self._tokenizer.added_tokens_decoder.values()
        return tuple(str(token) for token in added if token.special)

    @property
    def structure_tokens(self) -> Mapping[str, int]:
        """Text to id of all tokens that no text of the world may become: special tokens, and added
        ones that are markup, for example `<think>`.
        """
        return self._codec.controls

    @property
    def chat_template(self) -> str:
        """Text of the chat template; of several named ones the default."""
        found = self._tokenizer.chat_template
        return str(found["default"] if isinstance(found, dict) else found)

    @property
    def vocabulary(self) -> frozenset[str]:
        """Texts that are one token wherever they occur, special or not."""
        return frozenset(map(str, self._tokenizer.added_tokens_decoder.values()))

    def end_of(self, text: str) -> int:
        """Return the id that ends a turn of this text, which is another one after a tool call for
        some models: GLM, gpt-oss, Gemma 4.
        """
        spoken = text.rpartition("</think>")[2]
        return self.call_end_id if _CALL.search(spoken) else self.eos_token_id

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, control tokens included."""
        return self._codec.text_of(token_id) or self._codec.decode([token_id])

    def encode(self, text: str) -> list[int]:
        """Tokenise plain text without adding special tokens."""
        return self._codec.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a completion without its end-of-turn token."""
        ids = list(token_ids)
        if ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        return self._codec.decode(ids)

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[JsonValue] | None = None
    ) -> list[int]:
        """Return the ids of a conversation up to the start of the policy's first turn.

        `tools` are JSON schemas that the template itself shows. Raises TemplateError if it shows
        none.
        """
        if tools and not self.renders_tools:
            raise TemplateError(
                "expected a chat template that shows the tools that it is given, found one that "
                "shows none: describe them in the system message, or set model.chat_template to a "
                "template with tools"
            )
        hiding = Hiding(self._codec.pattern)
        shown = [hiding.value(tool) for tool in tools] if tools else None
        text = self._prober.render(self._frame.form, _turns(messages, hiding), tools=shown)
        return self._ids(text, hiding)

    def continuation(
        self, messages: Sequence[Message], *, last_id: int, history: Sequence[Message] = ()
    ) -> list[int]:
        """Return the ids after a completion: `messages`, up to the start of the next turn.

        `last_id` is the completion's last id; the result starts with the end of the turn unless
        that is the end of the turn. `history` are the messages before the completion.
        """
        hiding = Hiding(self._codec.pattern)
        past = [Turn(message.role, "", "past" if message.name else "") for message in history]
        tail = self._prober.after(self._frame, _turns(messages, hiding), past)
        last, closing = self._codec.text_of(last_id), tail.closing
        if last and last in closing.ends:
            return self._ids(tail.rest, hiding, after=last_id)
        if last and not closing.ends and tail.rest.startswith(last):
            return self._ids(tail.rest.removeprefix(last), hiding, after=last_id)
        return self._ids(closing.text + tail.rest, hiding)

    def _ids(self, text: str, hiding: Hiding, after: int | None = None) -> list[int]:
        """Tokenise a rendered text, which follows the control token `after`.

        That token is encoded with it, because it may take blanks that follow.
        """
        start = "" if after is None else self._codec.text_of(after)
        ids = (
            self._codec.encode_hidden(start + text, hiding)
            if hiding.any
            else self._codec.encode(start + text)
        )
        return ids[1:] if start else ids

    def _followed_by(self, message: Message) -> str:
        hiding = Hiding(self._codec.pattern)
        return self._prober.after(self._frame, _turns([message], hiding)).rest

    def _finds_tools(self) -> bool:
        try:
            text = self._prober.render(self._frame.form, OPENING, tools=[PROBE_TOOL])
        except TemplateError:
            return False
        return all(probe in text for probe in ("probe_tool", "PROBE-DESCRIPTION"))

    def _shows_date(self) -> bool:
        texts = {
            self._renderer.render(self._frame.form, OPENING, open_turn=True, day=day)
            for day in ("2001-02-03", "2019-08-27")
        }
        return len(texts) > 1

    def _texts(self, token_ids: Iterable[int]) -> list[str]:
        return [text for number in token_ids if (text := self._codec.text_of(number))]


def _turns(messages: Sequence[Message], hiding: Hiding) -> list[Turn]:
    return [
        Turn(message.role, hiding.message(message), str(hiding.value(message.name)))
        for message in messages
    ]
