# pyright: reportMissingImports=false
"""Plays episodes with verifiers' OpenEnv taskset: verifiers' evaluation, harness and client.

    python verifiers_episodes.py URL FOLDER < plan.json

`plan.json`: {"resets": [arguments of reset], "answers": {question: answer}}. The model is scripted
and served on loopback: it tries a tool, begins the execution, and answers by the plan. Prints one
JSON object per episode: reward and errors.
"""

import asyncio
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from verifiers.v1.cli.eval.runner import run_eval
from verifiers.v1.configs.cli.eval import EvalConfig

UV = """#!/bin/sh
# Stands in for uv where there is no network: what the scripts ask for is installed already.
for word in "$@"; do [ "$word" = --help ] && { echo "--script"; exit 0; }; done
[ "$1" = python ] && echo "{python}"
exit 0
"""


def reply_to(messages: list[dict], answers: dict[str, str]) -> str:
    """Return the next action: a trial call, then begin_execution, then the answer."""
    content = messages[-1]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    observation = json.loads(text)["observation"]
    if "tool_name" in observation:
        return '{"type": "begin_execution"}'
    if observation["phase"] == "trial":
        tool = observation["available_tools"][0]["name"]
        return json.dumps({"type": "call_tool", "tool_name": tool, "arguments": {"x": "123"}})
    return json.dumps({"type": "answer", "text": answers[observation["question"]]})


def completion(model: str, text: str, *, stream: bool) -> bytes:
    """Return the body of a chat completion; a stream says it all in one event."""
    message = {"role": "assistant", "content": text}
    common = {"id": "scripted", "created": int(time.time()), "model": model}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "finish_reason": "stop"}
    if not stream:
        whole = {"object": "chat.completion", "choices": [choice | {"message": message}]}
        return json.dumps(common | whole | {"usage": usage}).encode()
    chunk = {"object": "chat.completion.chunk", "choices": [choice | {"delta": message}]}
    event = json.dumps(common | chunk | {"usage": usage})
    return f"data: {event}\n\ndata: [DONE]\n\n".encode()


def serve_model(answers: dict[str, str]) -> str:
    """Serve the scripted model as an OpenAI-compatible endpoint; return its base URL."""

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = reply_to(request["messages"], answers)
            body = completion(request["model"], text, stream=bool(request.get("stream")))
            kind = "text/event-stream" if request.get("stream") else "application/json"
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def main(url: str, folder: Path) -> None:
    plan = json.load(sys.stdin)
    shim = folder / "bin" / "uv"
    shim.parent.mkdir()
    shim.write_text(UV.replace("{python}", sys.executable))
    shim.chmod(0o755)
    os.environ["PATH"] = f"{shim.parent}:{os.environ['PATH']}"
    os.environ["HOME"] = str(folder)
    taskset = {"id": "openenv", "base_url": url, "resets": plan["resets"]}
    player = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}
    config = EvalConfig.model_validate(
        {
            "env": {"taskset": taskset, "player": player},
            "model": "scripted",
            "client": {"base_url": serve_model(plan["answers"]), "api_key_var": "NO_KEY"},
            "rich": None,
            "push": False,
            "output_dir": str(folder / "out"),
        }
    )
    for episode in asyncio.run(run_eval(config)):
        for trace in episode.traces:
            row = {"reward": trace.reward, "errors": [str(error) for error in trace.errors]}
            print(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
