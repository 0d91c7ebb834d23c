"""Client of an OpenAI-compatible chat endpoint: retries, deadlines, and a budget."""

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
from rollout.engines.openai_wire import ChatReply, ModelList, WireUsage

MAX_REPLY_BYTES = 16 * 2**20
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({401, 402, 403, 404})
"""HTTP statuses after which every other request would be refused too."""
_LISTED = 8
_CHARACTERS_PER_TOKEN = 3
"""For endpoints that report no usage. A low guess, so that a budget ends early, not late."""


@dataclass(slots=True)
class Spending:
    """Requests made to an endpoint so far, and the tokens that they used."""

    requests: int = 0
    """Retries included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and replies."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, other: "Spending") -> None:
        """Add the counts of `other`."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why a try failed, and the wait that the endpoint demanded, in seconds."""

    text: str
    retry_after_s: float | None = None


class ChatClient:
    """Client of one endpoint, shared by all episodes.

    If the endpoint demands a wait, all requests wait, not only the refused one. `key` appears in
    no message and in nothing that is stored.
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
        """Request the list of models.

        Raises MissingError (not reachable) or ConfigError (key refused, model not listed). An
        endpoint without a list of models passes.
        """
        try:
            async with asyncio.timeout(self._config.attempt_timeout_s):
                reply = await self._http.get(f"{self._url}/models", headers=self._headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise MissingError(
                f"no endpoint answers at {self._url} ({_named(error)}): start it, or set "
                "collect.endpoint.base_url (--base-url)"
            ) from None
        if reply.status_code in (401, 403):
            raise ConfigError(self._key_refused(reply.status_code))
        if reply.status_code != 200:
            return
        try:
            offered = [model.id for model in ModelList.model_validate_json(reply.content).data]
        except ValidationError:
            return
        if offered and self._config.model not in offered:
            shown = ", ".join(offered[:_LISTED]) + (", ..." if len(offered) > _LISTED else "")
            raise ConfigError(
                f"{self._url} has no model {self._config.model!r}; it offers: {shown}. "
                "Set collect.endpoint.model (--model)"
            )

    async def complete(self, body: JsonObject, label: str, took: Spending) -> ChatReply:
        """Return the endpoint's reply to `body`; `label` seeds the jitter of the waits.

        Adds what was used to `took`, also on failure. Raises TeacherError (this request failed) or
        EngineError (no request can succeed: wrong key or model, or no budget).
        """
        config, loop = self._config, asyncio.get_running_loop()
        deadline = loop.time() + config.deadline_s
        tries, fault = 0, _Fault("no time was left")
        for attempt in range(config.attempts):
            wait_s = self._quiet_until - loop.time()
            if attempt and fault.retry_after_s is None:
                jitter = 0.5 + random.Random(stable_hash(label, attempt)).random()
                wait_s = max(wait_s, config.backoff_s * 2 ** (attempt - 1) * jitter)
            if loop.time() + wait_s >= deadline:
                break
            await asyncio.sleep(max(wait_s, 0.0))
            self._afford()
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
        raise TeacherError(f"no reply after {tries} tries: {fault.text}")

    def _afford(self) -> None:
        if not self.budget_left:
            raise EngineError(
                f"the teacher's budget is spent: {self.spent.requests} requests, "
                f"{self.spent.tokens} tokens"
            )

    def _count(self, body: JsonObject, reply: ChatReply, took: Spending) -> None:
        usage = reply.usage or WireUsage(
            prompt_tokens=len(json.dumps(body)) // _CHARACTERS_PER_TOKEN,
            completion_tokens=len(reply.model_dump_json()) // _CHARACTERS_PER_TOKEN,
        )
        used = Spending(0, usage.prompt_tokens, usage.completion_tokens)
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
                return _Fault(f"a reply that is no chat completion: {self._excerpt(content)}")
        text = f"HTTP {status}: {self._excerpt(content)}"
        if status in (401, 403):
            raise EngineError(self._key_refused(status))
        if status in _REFUSED or b"insufficient_quota" in content:
            raise EngineError(f"{self._url} refuses every request: {text}")
        if status in _AGAIN:
            return _Fault(text, _retry_after(response))
        raise TeacherError(f"{self._url} does not take the request: {text}")

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
            f"{self._url} refuses {source} (HTTP {status}): set collect.endpoint.key_variable "
            "(--key-variable) to an environment variable that holds a valid one"
        )

    def _excerpt(self, content: bytes) -> str:
        """Return the beginning of a body, without the key, which some endpoints repeat."""
        text = " ".join(content.decode(errors="replace").split())
        return (text.replace(self._key, "***") if self._key else text)[:200] or "(empty)"


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number or a date."""
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
