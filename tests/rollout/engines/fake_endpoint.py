"""An OpenAI-compatible endpoint in this process, which answers what a test gives it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from rollout.engines.openai_client import ChatClient
from rollout.engines.openai_config import EndpointConfig

KEY = "sk-do-not-tell"
PROMPT = EndpointConfig(
    base_url="http://teacher/v1", model="m", attempts=4, backoff_s=0.001, attempt_timeout_s=5.0
)
NATIVE = PROMPT.model_copy(update={"tool_format": "native"})

Answer = Callable[["FakeEndpoint", dict[str, Any]], Response]


def says(content: str | None = None, finish: str = "stop", **message: Any) -> Answer:
    """Answer a chat completion."""
    body = {
        "choices": [{"message": {"content": content, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }
    return lambda endpoint, request: JSONResponse(body)


def fails(status: int, text: str = "no", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda endpoint, request: PlainTextResponse(text, status, headers=named)


def garbage(endpoint: "FakeEndpoint", request: dict[str, Any]) -> Response:
    return PlainTextResponse("<html>gateway</html>")


def no_choices(endpoint: "FakeEndpoint", request: dict[str, Any]) -> Response:
    return JSONResponse({"choices": []})


def hangs(endpoint: "FakeEndpoint", request: dict[str, Any]) -> Response:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    return StreamingResponse(never())


@dataclass
class FakeEndpoint:
    """Speaks the protocol in this process; says what it is given, the last for ever."""

    answers: Sequence[Answer]
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def client(self, config: EndpointConfig) -> ChatClient:
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models),
        ]
        transport = httpx.ASGITransport(Starlette(routes=routes))
        return ChatClient(httpx.AsyncClient(transport=transport), config, KEY)

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        return answer(self, body)

    async def _models(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return PlainTextResponse(f"wrong key {KEY}", 401)
        return JSONResponse({"data": [{"id": "big"}, {"id": "small"}]})


def call(name: str, x: object) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"x": {x}}}}}\n</tool_call>'


def native_call(name: str, arguments: object) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": text}
    return {"tool_calls": [{"id": "c1", "type": "function", "function": function}]}
