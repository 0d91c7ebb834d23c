"""Client of an OpenAI-compatible chat endpoint: deadlines, retries with back-off, and a budget."""

import asyncio
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError

from envs.errors import ConfigError, EngineError, MissingError, TeacherError
from envs.seeds import stable_hash
from envs.tools import JsonObject
from rollout.engines.openai_config import EndpointConfig
from rollout.engines.openai_wire import ChatReply, ChatUsage, ModelList

MAX_REPLY_BYTES = 16 * 2**20
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_FATAL_STATUSES = frozenset({401, 402, 403, 404})
"""Every other request would fail in the same way."""
_LISTED = 8
_CHARACTERS_PER_TOKEN = 3
"""Estimate for endpoints that do not report usage; low, so that a budget is reached early."""


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

    If the endpoint specifies a wait, all requests wait, not only the rejected one. `key` never
    appears in messages or in stored data.
    """

    def __init__(self, http: httpx.AsyncClient, config: EndpointConfig, key: str) -> None:
        self._http = http
        self._config = config
        self._key = key
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

    async def check(self) -> None:
        """Check the endpoint with a request for its list of models.

        Raises MissingError (not reachable) or ConfigError (key rejected, model not served). An
        endpoint without this list passes.
        """
        try:
            async with asyncio.timeout(self._config.attempt_timeout_s):
                reply = await self._http.get(f"{self._url}/models", headers=self._headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise MissingError(
                f"expected an endpoint at {self._url}, found none ({_named(error)}): start it, or "
                "set collect.endpoint.base_url (--base-url)"
            ) from None
        if reply.status_code in (401, 403):
            raise ConfigError(self._key_refused(reply.status_code))
        if reply.status_code != 200:
            return
        try:
            served = [model.id for model in ModelList.model_validate_json(reply.content).data]
        except ValidationError:
            return
        if served and self._config.model not in served:
            shown = ", ".join(served[:_LISTED]) + (", ..." if len(served) > _LISTED else "")
            raise ConfigError(
                f"{self._url} has no model {self._config.model!r}; it serves: {shown}. "
                "Set collect.endpoint.model (--model)"
            )

    async def complete(self, body: JsonObject, label: str, took: Spending) -> ChatReply:
        """Return the endpoint's reply to `body`; `label` seeds the random part of the waits.

        Requests and tokens are added to `took`, also if the request fails. Raises TeacherError
        (this request failed) or EngineError (no request can succeed: key, model or budget).
        """
        config, loop = self._config, asyncio.get_running_loop()
        deadline = loop.time() + config.deadline_s
        tries, fault = 0, _Fault("the deadline passed before the first attempt")
        for attempt in range(config.attempts):
            wait_s = self._quiet_until - loop.time()
            if attempt and fault.retry_after_s is None:
                jitter = 0.5 + random.Random(stable_hash(label, attempt)).random()
                wait_s = max(wait_s, config.backoff_s * 2 ** (attempt - 1) * jitter)
            if loop.time() + wait_s >= deadline:
                break
            await asyncio.sleep(max(wait_s, 0.0))
            self._check_budget()
            self.spent.requests += 1
            took.requests += 1
            tries += 1
            reply = await self._attempt(body, min(config.attempt_timeout_s, deadline - loop.time()))
            if isinstance(reply, ChatReply):
                self._count(body, reply, took)
                return reply
            fault = reply
            if fault.retry_after_s is not None:
                self._quiet_until = max(self._quiet_until, loop.time() + fault.retry_after_s)
        raise TeacherError(f"no reply after {tries} attempts: {fault.text}")

    def _check_budget(self) -> None:
        if not self.budget_left:
            raise EngineError(
                f"the teacher's budget is used up: {self.spent.requests} requests, "
                f"{self.spent.tokens} tokens"
            )

    def _count(self, body: JsonObject, reply: ChatReply, took: Spending) -> None:
        usage = reply.usage or ChatUsage(
            prompt_tokens=len(json.dumps(body)) // _CHARACTERS_PER_TOKEN,
            completion_tokens=len(reply.model_dump_json()) // _CHARACTERS_PER_TOKEN,
        )
        used = Spending(
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens
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
            return _Fault(f"the connection failed ({_named(error)})")
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
        if status in _RETRIED_STATUSES:
            return _Fault(text, _retry_after(response))
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
        return (text.replace(self._key, "***") if self._key else text)[:200] or "(empty)"


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds in a Retry-After header, which holds a number or a date."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)
