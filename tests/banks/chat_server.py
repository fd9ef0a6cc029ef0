"""A real HTTP server that speaks the chat-completions protocol, with every trouble a test wants."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What the pretended model knows.
KNOWLEDGE: dict[str, dict[str, list[str]]] = {
    "goldfish": {
        "appearance": ["Orange scales", "shiny body", "goldfish colour"],
        "parts": ["forked tail", "fins"],
        "surroundings": ["glass bowl", "green plants"],
    },
    "ant": {
        "appearance": ["tiny black body", "elegant shape", "red ants"],
        "parts": ["six legs", "antennae", "thin legs"],
        "surroundings": ["leaf", "green plant", "a very long sentence about soil"],
    },
    "CD/DVD player": {
        "appearance": ["silver case", "flat box"],
        "parts": ["disc tray", "round buttons", "fins"],
        "surroundings": ["wooden shelf", "television"],
    },
}
PICTURE = {"appearance": ["blurred lights"], "parts": ["wooden frame", "goldfish"], "surroundings": ["kitchen table"]}


def answer_for(request: dict[str, Any]) -> dict[str, list[str]]:
    """What a good model would say to a request."""
    content = request["messages"][-1]["content"]
    if isinstance(content, list):
        return PICTURE
    title = json.loads(re.search(r'category ("(?:[^"\\]|\\.)*")', content)[1])
    known = content.partition("do not repeat them: ")[2]
    said = KNOWLEDGE.get(title, {aspect: [f"{aspect} of number {len(title)}"] for aspect in PICTURE})
    return {aspect: [p for p in phrases if p.lower() not in known] for aspect, phrases in said.items()}


def envelope(text: Any, *, usage: bool = True, finish: str = "stop") -> dict[str, Any]:
    """The body of a chat completion."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "pretended-1",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text if isinstance(text, str) else json.dumps(text)},
            }
        ],
    }
    if usage:
        body["usage"] = {"prompt_tokens": 300, "completion_tokens": 60, "total_tokens": 360}
    return body


class ChatServer:
    """Answers requests with a list of troubles first, then well.

    A trouble is a function from (handler, request) that writes the whole response; ``every`` runs before each request.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.troubles: list[Callable[[BaseHTTPRequestHandler, dict[str, Any]], None] | None] = []
        self.every: Callable[[BaseHTTPRequestHandler, dict[str, Any]], bool] | None = None
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.send_error(405)

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(request)
                    outer.headers.append(dict(self.headers.items()))
                    outer.paths.append(self.path)
                    trouble = outer.troubles.pop(0) if outer.troubles else None
                self.close_connection = True
                if outer.every is not None and outer.every(self, request):
                    return
                if trouble is not None:
                    trouble(self, request)
                else:
                    reply(self, 200, envelope(answer_for(request)))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def running() -> Iterator[ChatServer]:
    server = ChatServer()
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()


def reply(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: Any,
    *,
    kind: str = "application/json",
    length: int | None = None,
    **headers: str,
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)
    handler.wfile.flush()


def status(code: int, message: str = "trouble", **headers: str) -> Callable:
    return lambda handler, request: reply(handler, code, {"error": {"message": message}}, **headers)


def says(text: Any, **options: Any) -> Callable:
    return lambda handler, request: reply(handler, 200, envelope(text, **options))


def body(data: Any, **options: Any) -> Callable:
    return lambda handler, request: reply(handler, 200, data, **options)


def hangs(seconds: float) -> Callable:
    def trouble(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        time.sleep(seconds)

    return trouble


def trickles(seconds: float) -> Callable:
    """A byte now and then, so that no single read times out."""

    def trouble(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.02)
        except OSError:
            return

    return trouble


def breaks(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    """Close the connection without a word."""
    handler.connection.close()
