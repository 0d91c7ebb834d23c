"""Finds out how a chat template is used, by rendering probes; refuses what it cannot prove."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from envs.errors import TemplateError
from envs.messages import Role
from rollout.chat.encoding import TextCodec
from rollout.chat.rendering import Form, Renderer, ToolRole, Turn, arranged

SYSTEM, USER, ANSWER = "PROBE-SYSTEM", "PROBE-USER", "PROBE-ANSWER"
TOOL, SECOND, NEXT = "PROBE-TOOL", "PROBE-SECOND", "PROBE-NEXT"
NAME = "probe_tool"
OPENING = (Turn("system", SYSTEM), Turn("user", USER))
_ANSWERED = (*OPENING, Turn("assistant", ANSWER, answer=ANSWER))
_FOLLOWERS = (
    (Turn("tool", TOOL, NAME),),
    (Turn("tool", TOOL, NAME), Turn("tool", SECOND, NAME)),
    (Turn("tool", TOOL),),
    (Turn("user", NEXT),),
)
"""What may follow an answer: tool answers, an error where no tool was called, a user turn."""
_PAST = {"system": SYSTEM, "user": USER}
_TOOL_ROLES: tuple[ToolRole, ...] = ("tool", "called", "called_once", "user")


class _UnfitError(TemplateError):
    """A form in which a template fails, or does not show what it is given."""


@dataclass(frozen=True, slots=True)
class Closing:
    """How a template ends a turn that another one follows.

    `text` ends the turn where the policy did not; it is left out after a token of `ends`. Both are
    empty where nothing ends a turn: the next one starts at once, and its first token is what the
    policy stops with.
    """

    text: str = ""
    ends: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """How a template is used."""

    form: Form
    closings: Mapping[Role, Closing]
    """By the role of what follows. After a call that the template renders, see `after_call`."""
    counts_rounds: bool = False
    """Whether what follows an answer depends on what came before it, as with DeepSeek."""
    end_of_turn: str
    end_of_call: str
    """The token that ends a turn with a tool call; mostly the same."""
    stops: tuple[str, ...]
    """All tokens that end a turn of the policy in this template."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows an answer in a rendered conversation, up to the start of the next turn."""

    closing: Closing
    rest: str
    """What comes after the turn of the answer."""


class Prober:
    """Probes one template. `declared` are texts of the tokens at which the model stops."""

    def __init__(self, renderer: Renderer, codec: TextCodec, declared: Sequence[str]) -> None:
        self._renderer = renderer
        self._codec = codec
        self._declared = declared

    def frame(self) -> Frame:
        """Return how the template is used. Raises TemplateError."""
        form = self._form()
        closings: dict[Role, Closing] = {}
        stops: list[str] = []
        call_stops: list[str] = []
        for followers in _FOLLOWERS:
            turns = arranged(form, (*_ANSWERED, *followers))
            answer = _answer_of(turns)
            if turns[answer].calls:
                call_stops += self.after_call(form, turns).closing.ends
                continue
            role = turns[answer + 1].role
            closings[role], found = self._closing(form, turns)
            (call_stops if role == "tool" else stops).extend(found)
        if not stops:
            tail = self.tail_text(form, (*_ANSWERED, *_FOLLOWERS[-1]), open_turn=True)
            raise TemplateError(
                "expected the chat template to end an assistant turn with a token of the "
                f"tokenizer, found {tail[:40]!r} after the answer: add that token to the "
                "tokenizer, or set model.chat_template to a template that fits it"
            )
        frame = Frame(
            form=form,
            closings=closings,
            end_of_turn=self._likeliest(stops),
            end_of_call=self._likeliest(call_stops or stops),
            stops=tuple(dict.fromkeys([*stops, *call_stops])),
            counts_rounds=True,
        )
        return replace(frame, counts_rounds=self._differs_by_round(frame))

    def _differs_by_round(self, frame: Frame) -> bool:
        past = Turn("assistant", "PROBE-PAST")
        for followers in _FOLLOWERS:
            first = self.after(frame, followers)
            for before in _FOLLOWERS:
                try:
                    later = self.after(frame, followers, (*OPENING, past, *before))
                except TemplateError:  # such a template is only ever shown one round
                    return False
                if later != first:
                    return True
        return False

    def tail_text(self, form: Form, turns: Sequence[Turn], *, open_turn: bool) -> str:
        """Return the rendered conversation behind its first answer."""
        text = self.render(form, turns, open_turn=open_turn)
        return text[text.find(ANSWER) + len(ANSWER) :]

    def _form(self) -> Form:
        """Return the first form in which the template shows everything. Raises TemplateError."""
        reason = ""
        for opening in _opening_forms():
            try:
                self._check_opening(opening)
                two = self._form_of_two_users(opening)
            except _UnfitError as error:
                reason = reason if opening.parts and reason else str(error)
                continue
            for form in _tool_forms(two):
                try:
                    self._check_followers(form)
                except _UnfitError as error:
                    reason = reason if opening.parts and reason else str(error)
                else:
                    return self._with_calls(form)
        raise TemplateError(f"{reason}; or set model.chat_template to another template")

    def _with_calls(self, form: Form) -> Form:
        """Return a form in which calls are rendered, if the template ends those in another way
        than it ends an answer that a tool's answer follows (GLM); otherwise `form`.
        """
        if form.tools != "tool":
            return form
        plain, _ = self._closing(form, [*_ANSWERED, *_FOLLOWERS[0]])
        for called in _tool_forms(form)[1:-1]:
            try:
                self._check_followers(called)
            except _UnfitError:
                continue
            turns = arranged(called, (*_ANSWERED, *_FOLLOWERS[0]))
            ends = self.after_call(called, turns).closing.ends
            return called if ends and plain.ends and not ends & plain.ends else form
        return form

    def after(self, frame: Frame, followers: Sequence[Turn], history: Sequence[Turn] = ()) -> Tail:
        """Return what follows an answer that `followers` come after. Raises TemplateError.

        `history` is what came before the answer. Only its roles count: some templates open the
        tools' answers of a first round in another way than later ones.
        """
        past = history if frame.counts_rounds else ()
        before = [replace(turn, text=_PAST.get(turn.role, "...")) for turn in past] or OPENING
        turns = arranged(frame.form, (*before, _ANSWERED[-1], *followers))
        answer = _answer_of(turns)
        if turns[answer].calls:
            return self.after_call(frame.form, turns)
        tail = self.tail_text(frame.form, turns, open_turn=True)
        closing = frame.closings[turns[answer + 1].role]
        if not tail.startswith(closing.text):
            raise TemplateError(
                f"expected the chat template to end an answer with {closing.text!r}, as it did for "
                f"a probe, found {tail[:40]!r}: set model.chat_template to another template"
            )
        return Tail(closing, tail.removeprefix(closing.text))

    def after_call(self, form: Form, turns: Sequence[Turn]) -> Tail:
        """Return what follows an answer that the template renders as a call."""
        tail = self.tail_text(form, turns, open_turn=True)
        base = self.tail_text(form, turns[: _answer_of(turns) + 1], open_turn=False)
        seen = self._tokens(tail[: _alike(base, tail)])
        found = [(token, end) for token, end in seen if token in self._codec.special]
        if not found:
            return Tail(Closing(), tail)
        token, end = found[-1]
        return Tail(Closing(token, frozenset({token})), tail[end:])

    def generation_prompt(self, form: Form) -> str:
        """Return what opens a turn of the policy at the start of an episode."""
        opened = self.render(form, OPENING, open_turn=True)
        closed = self.render(form, OPENING, open_turn=False)
        same = _alike(opened, closed)
        inside = [end - len(token) for token, end in self._tokens(opened) if end > same]
        return opened[min([same, *inside]) :]

    def _closing(self, form: Form, turns: Sequence[Turn]) -> tuple[Closing, list[str]]:
        """Return how a turn ends that is followed by others, and the tokens to stop at."""
        tail = self.tail_text(form, turns, open_turn=True)
        base = self.tail_text(form, turns[: _answer_of(turns) + 1], open_turn=False)
        seen = self._tokens(tail[: tail.find("PROBE-")])
        last = [token for token, _ in self._tokens(base)]
        if not last:
            return Closing(), self._openers(form, tail, seen[:1])
        both = [token for token in last if token in {token for token, _ in seen}]
        end_of_turn = self._likeliest(both or last)
        inside = [found for found in seen if found[0] in last] or seen[:1]
        if not inside:
            return Closing(), []
        token = self._likeliest([token for token, _ in inside])
        end = next(end for other, end in inside if other == token)
        return Closing(tail[:end], frozenset({token, end_of_turn})), [end_of_turn]

    def _likeliest(self, tokens: Sequence[str]) -> str:
        return next((token for token in tokens if token in self._declared), tokens[0])

    def _openers(self, form: Form, tail: str, first: Sequence[tuple[str, int]]) -> list[str]:
        """Return the token that starts the next turn, if that can end one (GLM): it follows at
        once, and the model is known to stop at it, or it starts no turn of the policy.
        """
        opened = self.generation_prompt(form)
        return [
            token
            for token, end in first
            if not tail[: end - len(token)].strip()
            and (token in self._declared or token not in opened)
        ]

    def _tokens(self, text: str) -> list[tuple[str, int]]:
        """Return the control tokens in `text` with their ends."""
        return [(found[0], found.end()) for found in self._codec.pattern.finditer(text)]

    def render(
        self,
        form: Form,
        turns: Sequence[Turn],
        *,
        open_turn: bool = True,
        tools: Sequence[JsonValue] | None = None,
    ) -> str:
        """Return the text of a conversation. Raises TemplateError where the template fails."""
        try:
            return self._renderer.render(form, turns, open_turn=open_turn, tools=tools)
        except Exception as error:
            raise _UnfitError(
                "expected a chat template for system, user, assistant and tool messages, found one "
                f"that fails on them: {error}"
            ) from error

    # The checks of a form

    def _shown(self, form: Form, turns: Sequence[Turn], texts: Sequence[str]) -> str:
        """Return a rendering in which all of `texts` occur once, in this order."""
        text = self.render(form, turns)
        wrong = [probe for probe in texts if text.count(probe) != 1]
        if wrong:
            raise _UnfitError(
                "expected a chat template that shows every message once, found one that shows "
                f"{_KINDS[wrong[0]]} {text.count(wrong[0])} times"
            )
        places = [text.index(probe) for probe in texts]
        if places != sorted(places):
            raise _UnfitError(
                "expected a chat template that shows messages in their order, found "
                f"{', '.join(_KINDS[probe] for probe in sorted(texts, key=text.index))}"
            )
        return text

    def _check_opening(self, form: Form) -> None:
        self._shown(form, OPENING, (SYSTEM, USER))
        self._shown(form, _ANSWERED, (SYSTEM, USER, ANSWER))

    def _form_of_two_users(self, form: Form) -> Form:
        """Return how two user turns in a row are given to the template."""
        turns, texts = (*OPENING, Turn("user", NEXT)), (SYSTEM, USER, NEXT)
        try:
            self._shown(form, turns, texts)
        except _UnfitError:
            form = replace(form, joined_users=True)
            self._shown(form, turns, texts)
        return form

    def _check_followers(self, form: Form) -> None:
        opened = self.render(form, OPENING)
        start = opened[: opened.index(USER) + len(USER)]
        for followers in _FOLLOWERS:
            texts = (SYSTEM, USER, ANSWER, *(turn.text for turn in followers))
            turns = (*_ANSWERED, *followers)
            text = self._shown(form, turns, texts)
            if not text.startswith(start):
                raise _UnfitError(
                    "the chat template cannot extend its own prefix: with an answer and a "
                    f"{followers[0].role} message added, the conversation starts differently: "
                    f"expected {start[-60:]!r}, found {text[: len(start)][-60:]!r}. Choose a "
                    "template that only appends"
                )
            self._check_stays(form, turns, text)

    def _check_stays(self, form: Form, turns: Sequence[Turn], text: str) -> None:
        """Check that what was appended after an answer stays when more is appended."""
        again = Turn("assistant", "PROBE-AGAIN", answer="PROBE-AGAIN")
        longer = self.render(form, (*turns, again, Turn("user", "PROBE-LAST")))
        shown = turns[-1].text
        before, after = (
            found[found.find(ANSWER) : found.find(shown) + len(shown)] for found in (text, longer)
        )
        if before != after:
            raise _UnfitError(
                "the chat template cannot extend its own prefix: a following turn changes the text "
                f"before it: expected {before[-60:]!r}, found {after[-60:]!r}. Choose a template "
                "that only appends"
            )


_KINDS = {
    SYSTEM: "the system text",
    USER: "the user's text",
    ANSWER: "the answer",
    TOOL: "a tool's answer",
    SECOND: "a second tool's answer",
    NEXT: "a following user's text",
}


def _opening_forms() -> list[Form]:
    return [
        Form(parts=parts, system_role=system_role)
        for parts in (False, True)
        for system_role in (True, False)
    ]


def _tool_forms(form: Form) -> list[Form]:
    found: Iterator[Form] = (
        replace(form, tools=role, json_arguments=text)
        for role in _TOOL_ROLES
        for text in ((False, True) if role.startswith("called") else (False,))
    )
    return list(found)


def _answer_of(turns: Sequence[Turn]) -> int:
    """Return the index of the probe's answer."""
    return next(index for index, turn in enumerate(turns) if turn.answer == ANSWER)


def _alike(one: str, other: str) -> int:
    """Return the length of the longest common prefix."""
    shorter = min(len(one), len(other))
    return next((n for n in range(shorter) if one[n] != other[n]), shorter)
