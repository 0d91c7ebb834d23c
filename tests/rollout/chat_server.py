"""An OpenAI-compatible chat endpoint on loopback, which answers what a function says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any], int], "str | int"]
"""Maps a request and its number to the text of the reply, or to a status that fails it."""


class ChatServer:
    """Its address, and the requests that it got."""

    def __init__(self, reply: Reply) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = json.loads(self.rfile.read(length))
                outer.requests.append(body)
                outer.keys.append(self.headers.get("authorization", ""))
                said = reply(body, len(outer.requests))
                status = said if isinstance(said, int) else 200
                message = {"choices": [{"message": {"role": "assistant", "content": said}}]}
                content = json.dumps(message if status == 200 else {"error": "no"}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@contextmanager
def chat_server(reply: Reply) -> Iterator[ChatServer]:
    """Serve chat completions until the end of the block."""
    served = ChatServer(reply)
    thread = threading.Thread(target=served.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()
