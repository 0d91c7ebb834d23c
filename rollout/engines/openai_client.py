"""Client of an OpenAI-compatible chat endpoint: deadlines, retries with back-off, and a budget."""

import asyncio
import contextlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from envs.errors import ConfigError, EngineError, MissingError, TeacherError
from envs.remote.http_reply import retry_after_s
from envs.remote.tokens import check_header
from envs.seeds import stable_hash
from envs.tools import JsonObject
from rollout.engines.openai_config import EndpointConfig
from rollout.engines.openai_wire import ChatReply, ModelList, may_be_listed_as, tokens_used

MAX_REPLY_BYTES = 16 * 2**20
MAX_RETRY_AFTER_S = 120.0
"""Longest wait that an endpoint's `Retry-After` imposes, in seconds."""
_RETRIED_STATUSES = frozenset({408, 425, 429})
_PERMANENT_5XX = frozenset({501, 505, 506, 508, 510, 511})
"""Server errors that the same request would meet again; every other 5xx is temporary, those of
proxies too (520 to 527, 529).
"""
_FATAL_STATUSES = frozenset({401, 402, 403, 404})
"""Every other request would fail in the same way."""
_LISTED = 8
_CHARACTERS_PER_TOKEN = 3
"""Estimate where there is no tokenizer; low, so that a budget is reached early."""


def estimated_tokens(text: str) -> int:
    """Return about how many tokens `text` has, without a tokenizer."""
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


@dataclass(slots=True, kw_only=True)
class Spending:
    """Requests sent to an endpoint and tokens used so far."""

    requests: int = 0
    """Every attempt counts."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Sum of prompt and reply tokens."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, other: "Spending") -> None:
        """Add the counts of `other`."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why an attempt failed, and the wait in seconds that the endpoint requested, if any."""

    text: str
    retry_after_s: float | None = None


class ChatClient:
    """Client of one endpoint, shared by any number of concurrent episodes.

    If the endpoint specifies a wait, all requests wait, not only the rejected one, and start again
    at different times. `key` never appears in messages or in stored data. Raises ConfigError for a
    key that no HTTP header may have.
    """

    def __init__(self, http: httpx.AsyncClient, config: EndpointConfig, key: str) -> None:
        self._http = http
        self._config = config
        variable = f" in ${config.key_variable}" if config.key_variable else ""
        self._key = check_header(key, f"the endpoint's key{variable}")
        self._url = config.base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._quiet_until = 0.0
        self.spent = Spending()

    @property
    def budget_left(self) -> bool:
        """Whether the budget allows another request."""
        config, spent = self._config, self.spent
        return not (
            (config.max_requests and spent.requests >= config.max_requests)
            or (config.max_total_tokens and spent.tokens >= config.max_total_tokens)
        )

    async def check(self) -> str:
        """Check the endpoint with a request for its list of models; return a warning, or nothing.

        Raises MissingError (not reachable) or ConfigError (key rejected, model not served). A
        model that is perhaps listed under a longer or shorter name passes with a warning, and so
        does an endpoint without this list.
        """
        try:
            async with asyncio.timeout(self._config.attempt_timeout_s):
                reply = await self._http.get(f"{self._url}/models", headers=self._headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise MissingError(
                f"expected an endpoint at {self._url}, found none ({self._named(error)}): start "
                "it, or set collect.endpoint.base_url (--base-url)"
            ) from None
        if reply.status_code in (401, 403):
            raise ConfigError(self._key_refused(reply.status_code))
        return self._listed(reply)

    def _listed(self, reply: httpx.Response) -> str:
        """Return a warning if the list of models does not have ours. Raises ConfigError."""
        model = self._config.model
        served: list[str] = []
        if reply.status_code == 200:
            with contextlib.suppress(ValidationError):
                served = [m.id for m in ModelList.model_validate_json(reply.content).data]
        if model in served:
            return ""
        if not served:
            return (
                f"{self._url} does not list its models (/models: HTTP {reply.status_code}): "
                f"{model!r} is asked for unchecked"
            )
        shown = ", ".join(served[:_LISTED]) + (", ..." if len(served) > _LISTED else "")
        if any(may_be_listed_as(model, other) for other in served):
            return f"{self._url} does not list {model!r} but {shown}: {model!r} is asked for anyway"
        if not self._config.check_model:
            return f"{self._url} does not list {model!r}: it is asked for anyway"
        raise ConfigError(
            f"{self._url} has no model {model!r}; it serves: {shown}. "
            "Set collect.endpoint.model (--model), or collect.endpoint.check_model = false if it "
            "answers to that name all the same"
        )

    async def complete(
        self,
        body: JsonObject,
        label: str,
        took: Spending,
        count_tokens: Callable[[str], int] = estimated_tokens,
    ) -> ChatReply:
        """Return the endpoint's reply to `body`; `label` seeds the random part of the waits.

        Requests and tokens are added to `took`, also if the request fails; `count_tokens` counts
        the tokens of a text where the reply does not. Raises TeacherError (this request failed) or
        EngineError (no request can succeed: key, model or budget).
        """
        config, loop = self._config, asyncio.get_running_loop()
        deadline = loop.time() + config.deadline_s
        tries, fault = 0, _Fault("the deadline passed before the first attempt")
        for attempt in range(config.attempts):
            wait_s = self._wait_s(label, attempt, self._quiet_until - loop.time())
            if loop.time() + wait_s >= deadline:
                break
            await asyncio.sleep(wait_s)
            self._check_budget()
            self.spent.requests += 1
            took.requests += 1
            tries += 1
            reply = await self._attempt(body, min(config.attempt_timeout_s, deadline - loop.time()))
            if isinstance(reply, ChatReply):
                self._count(body, reply, took, count_tokens)
                if not reply.failed:
                    return reply
                reply = _Fault("the endpoint broke its reply off before it said anything")
            fault = reply
            if fault.retry_after_s is not None:
                self._quiet_until = max(self._quiet_until, loop.time() + fault.retry_after_s)
        raise TeacherError(f"no reply after {tries} attempts: {fault.text}")

    def _wait_s(self, label: str, attempt: int, quiet_s: float) -> float:
        """Return the seconds before attempt number `attempt`, from 0, of a request.

        It is the longer of the back-off and of `quiet_s`, which the endpoint asked for. Requests
        that wait for the latter get a random share of the next back-off on top, or they would all
        come back at once.
        """
        random_share = random.Random(stable_hash(label, attempt)).random()
        backoff_s = self._config.backoff_s * 2 ** (attempt - 1) * (0.5 + random_share)
        spread_s = self._config.backoff_s * 2**attempt * random_share
        asked_s = quiet_s + spread_s if quiet_s > 0 else 0.0
        return max(asked_s, backoff_s if attempt else 0.0)

    def _check_budget(self) -> None:
        if not self.budget_left:
            raise EngineError(
                f"the teacher's budget is used up: {self.spent.requests} requests, "
                f"{self.spent.tokens} tokens"
            )

    def _count(
        self, body: JsonObject, reply: ChatReply, took: Spending, count_tokens: Callable[[str], int]
    ) -> None:
        prompt = tokens_used(reply, "prompt_tokens", "input_tokens")
        completion = tokens_used(reply, "completion_tokens", "output_tokens")
        sent = {name: body[name] for name in ("messages", "tools") if name in body}
        used = Spending(
            prompt_tokens=prompt or count_tokens(json.dumps(sent, ensure_ascii=False)),
            completion_tokens=completion or count_tokens(reply.said),
        )
        self.spent.add(used)
        took.add(used)

    async def _attempt(self, body: JsonObject, timeout_s: float) -> ChatReply | _Fault:
        try:
            async with asyncio.timeout(timeout_s):
                response, content = await self._post(body)
        except TimeoutError:
            return _Fault(f"no reply within {timeout_s:g} s")
        except httpx.HTTPError as error:
            return _Fault(f"the connection failed ({self._named(error)})")
        status = response.status_code
        if status == 200:
            try:
                return ChatReply.model_validate_json(content)
            except ValidationError:
                return _Fault(
                    f"expected a chat completion, found another reply: {self._excerpt(content)}"
                )
        text = f"HTTP {status}: {self._excerpt(content)}"
        if status in (401, 403):
            raise EngineError(self._key_refused(status))
        if status in _FATAL_STATUSES or b"insufficient_quota" in content:
            raise EngineError(f"{self._url} rejects every request: {text}")
        if status in _RETRIED_STATUSES or (status >= 500 and status not in _PERMANENT_5XX):
            return _Fault(text, retry_after_s(response, MAX_RETRY_AFTER_S))
        raise TeacherError(f"{self._url} rejected the request: {text}")

    async def _post(self, body: JsonObject) -> tuple[httpx.Response, bytes]:
        chunks: list[bytes] = []
        size = 0
        url = f"{self._url}/chat/completions"
        async with self._http.stream("POST", url, json=body, headers=self._headers) as response:
            async for chunk in response.aiter_bytes():
                size += len(chunk)
                if size > MAX_REPLY_BYTES:
                    raise httpx.ReadError(f"a reply of more than {MAX_REPLY_BYTES} bytes")
                chunks.append(chunk)
        return response, b"".join(chunks)

    def _key_refused(self, status: int) -> str:
        variable = self._config.key_variable
        source = f"the key in ${variable}" if self._key else "a request without a key"
        return (
            f"{self._url} rejects {source} (HTTP {status}): set collect.endpoint.key_variable "
            "(--key-variable) to an environment variable that holds a valid key"
        )

    def _excerpt(self, content: bytes) -> str:
        """Return the start of a body without the key, which some endpoints repeat in it."""
        text = " ".join(content.decode(errors="replace").split())
        return self._without_key(text)[:200] or "(empty)"

    def _named(self, error: Exception) -> str:
        return self._without_key(f"{type(error).__name__}: {error}".removesuffix(": "))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text
