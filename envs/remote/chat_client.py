"""Models behind an OpenAI-compatible API, as tools: what judges and simulated users ask.

A session is a series of independent requests. A reply that cannot be had is an infrastructure
failure, never an answer.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from random import Random

import httpx
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from envs.config import ChatConfig, ToolServerConfig
from envs.endpoints import ChatEndpoint
from envs.errors import ConfigError, InfraError, ToolServerError
from envs.remote.bounded_body import bounded_body
from envs.remote.endpoint_session import BackendReply, EndpointSession, Limits
from envs.remote.http_reply import retry_after_s
from envs.remote.tokens import endpoint_token
from envs.seeds import stable_hash
from envs.tools import AnswerStatus, JsonObject, SessionPurpose, ToolSet, ToolSpec

COMPLETE = "complete"
_RETRIED = frozenset({408, 409, 425, 429})
_BACKOFF_S = 0.5
_MAX_WAIT_S = 30.0
_MAX_REPLY_BYTES = 4 * 2**20
_SHOWN = 200
_READ_BYTES = 4_096
"""Bytes of a reply from which an error quotes."""


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore")

    content: str | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")

    message: _Said


class _Completion(BaseModel):
    model_config = ConfigDict(extra="ignore")

    choices: list[_Choice]


class _Retry(Exception):
    """An attempt that another one may succeed after, in `wait_s` seconds if the endpoint says."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


def chat_tools(config: ChatConfig, section: str) -> ToolSet:
    """Return the tool set of the endpoint that `section` of a recipe describes.

    Raises ConfigError if it names no model.
    """
    if not config.model:
        raise ConfigError(
            f"expected the model of an OpenAI-compatible endpoint in {section}.model, found none: "
            f"set it, and {section}.base_url"
        )
    keys = ("base_url", "model", "key_variable", "temperature", "max_tokens", "timeout_s")
    endpoint = ChatEndpoint(
        attempts=config.attempts,
        extra=dict(config.extra),
        **{key: getattr(config, key) for key in keys},
    )
    spec = ToolSpec(name=COMPLETE, description="", parameters={"type": "object"})
    return ToolSet(tools=(spec,), endpoint=endpoint)


class ChatTools:
    """ToolService for tool sets whose endpoint is a chat model; `variables` hold the keys."""

    def __init__(self, config: ToolServerConfig, variables: Mapping[str, str]) -> None:
        self._limits = Limits.of(config)
        self._variables = variables
        self._opened = 0
        self._http: httpx.AsyncClient | None = None

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> EndpointSession:
        """Open a session; nothing is sent yet. Raises ConfigError for a key that is missing."""
        endpoint = tool_set.endpoint
        if not isinstance(endpoint, ChatEndpoint):
            raise ConfigError(
                f"expected a tool set with a chat endpoint, found {type(endpoint).__name__}"
            )
        key = endpoint_token(endpoint.key_variable, endpoint.place, self._variables)
        if self._http is None:
            self._http = httpx.AsyncClient(timeout=None)
        backend = ChatBackend(self._http, endpoint, key)
        self._opened += 1
        session_id = f"chat-{stable_hash(seed, purpose, self._opened):016x}"
        limits = Limits(
            call_s=endpoint.attempts * (endpoint.timeout_s + _MAX_WAIT_S),
            open_s=self._limits.open_s,
            reply_bytes=_MAX_REPLY_BYTES,
        )
        return EndpointSession(session_id, tool_set, backend, limits)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()


class ChatBackend:
    """EndpointBackend of one chat model."""

    def __init__(self, http: httpx.AsyncClient, endpoint: ChatEndpoint, key: str) -> None:
        self._http = http
        self._endpoint = endpoint
        self._key = key

    async def answer(self, index: int, arguments: JsonObject) -> BackendReply:
        """Send one request: `messages`, and `seed` if given. Raises ToolServerError."""
        del index
        endpoint = self._endpoint
        body: JsonObject = {
            "model": endpoint.model,
            "temperature": endpoint.temperature,
            "max_tokens": endpoint.max_tokens,
            **arguments,
            **endpoint.extra,
        }
        rng = Random(stable_hash("chat", str(arguments)))
        fault = _Retry("no attempt was made")
        for attempt in range(endpoint.attempts):
            try:
                async with asyncio.timeout(endpoint.timeout_s):
                    return BackendReply(AnswerStatus.OK, await self._ask(body))
            except TimeoutError:
                fault = _Retry(f"no reply within {endpoint.timeout_s:g} s")
            except httpx.HTTPError as error:
                fault = _Retry(self._clean(f"{type(error).__name__}: {error}"))
            except _Retry as error:
                fault = error
            if attempt + 1 == endpoint.attempts:
                break
            backoff_s = _BACKOFF_S * 2**attempt * (0.5 + rng.random())
            await asyncio.sleep(max(backoff_s, fault.wait_s))
        raise ToolServerError(f"no reply after {endpoint.attempts} attempts: {fault}")

    async def close(self) -> None: ...

    async def _ask(self, body: dict[str, JsonValue]) -> str:
        headers = {"accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        url = f"{self._endpoint.base_url.rstrip('/')}/chat/completions"
        asking = self._http.stream("POST", url, json=body, headers=headers)
        async with asking as reply:
            try:
                content, more = await bounded_body(
                    reply.headers, reply.aiter_raw(), _MAX_REPLY_BYTES
                )
            except InfraError as error:
                raise _Retry(str(error)) from error
        said = content[:_READ_BYTES].decode("utf-8", "replace")
        status, text = reply.status_code, self._clean(" ".join(said.split())[:_SHOWN])
        if more:
            raise ToolServerError(f"HTTP {status}: a reply of more than {_MAX_REPLY_BYTES} bytes")
        if status in _RETRIED or status >= 500:
            raise _Retry(f"HTTP {status}: {text}", retry_after_s(reply, _MAX_WAIT_S) or 0.0)
        if status != 200:
            raise ToolServerError(f"HTTP {status}: {text}")
        with suppress(ValidationError):
            choices = _Completion.model_validate_json(content).choices
            if choices and choices[0].message.content:
                return choices[0].message.content
        raise _Retry(f"expected a chat completion with text, found {text}")

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text
