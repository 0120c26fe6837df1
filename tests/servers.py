"""A real HTTP server in a thread, which answers chat completions as a test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Response:
    """What is sent back. `body`: bytes as they are, or anything that becomes JSON."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Answer = Callable[[dict[str, Any]], Response]


@dataclass
class Server:
    """requests: the bodies of all requests in their order, with the headers under "headers"."""

    url: str
    answer: Answer
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_once: int = 0
    most_at_once: int = 0


def completion(text: str, *, finish: str = "stop", tokens: int = 7) -> Response:
    """A chat completion that says this."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return Response(
        {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


def error(status: int, message: str, **headers: str) -> Response:
    """As OpenAI's servers say that something is wrong."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response({"error": {"message": message, "type": "x", "code": None}}, status=status, headers=names)


@contextlib.contextmanager
def serving(answer: Answer, *, models: tuple[str, ...] = ("m",)) -> Iterator[Server]:
    """A server that answers every chat by `answer(body)`, and says that it has these models."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(Response({"object": "list", "data": [{"id": name, "object": "model"} for name in models]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append({**body, "headers": {name.lower(): text for name, text in self.headers.items()}})
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                self._send(server.answer(body))
            finally:
                with server.lock:
                    server.at_once -= 1

        def _send(self, response: Response) -> None:
            body = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked did not wait
                self.send_response(response.status)
                for name, value in {"Content-Type": "application/json", **response.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            del format, args

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(url=f"http://127.0.0.1:{http.server_port}/v1", answer=answer)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
