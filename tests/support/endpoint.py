"""An OpenAI-compatible server in a thread, whose answers a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], tuple[int, Any]]
"""Returns (status, response) for a request: its body (empty for GET), with its `path` and `key`."""


@contextmanager
def endpoint(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the URL of a server, and its requests as `reply` gets them."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self) -> None:
            self._reply({})

        def _reply(self, body: dict[str, Any]) -> None:
            request = {**body, "path": self.path, "key": self.headers.get("Authorization")}
            requests.append(request)
            status, response = reply(request)
            content = response.encode() if isinstance(response, str) else json.dumps(response).encode()
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()


def choice(text: str, reason: str = "stop") -> dict[str, Any]:
    """Return a response with one choice."""
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}
