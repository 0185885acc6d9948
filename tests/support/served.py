"""A server of tiny models: in this process for quick tests, or as a command on a real socket."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from tunesmith.registry.store import Registry
from tunesmith.serve.aliases import Aliases
from tunesmith.serve.app import ServerLimits, Service, make_app
from tunesmith.serve.catalog import Catalog
from tunesmith.serve.guard import ApiKey, allowed_hosts
from tunesmith.serve.http_server import HttpServer, listen
from tunesmith.serve.names import Served
from tunesmith.serve.pool import Pool, PoolOptions

HELLO = {"messages": [{"role": "user", "content": "Say red and cat."}], "max_tokens": 6}
KEY = "a-secret-key-of-this-test"


class Server:
    """A server in this process, with its parts."""

    def __init__(self, *models: str, key: str | None = None, limits: ServerLimits | None = None, **pool: Any) -> None:
        self.pool = Pool(PoolOptions(**pool))
        self.service = Service(Catalog(), limits=limits or ServerLimits())
        served = [Served.parse(model) for model in models]
        self.aliases = Aliases(served, self.service.catalog, self.pool, self.service.metrics)
        self.aliases.load_all()
        self.service.metrics.watch(lambda: [worker.stats for worker in self.pool.workers])
        self.app = make_app(self.service, key=ApiKey(key) if key else None, hosts=None, logs=False)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def post(self, path: str, **body: Any) -> Any:
        """Return the response to a request with a JSON body."""
        return self.client.post(path, json=body)

    def worker(self, name: str) -> Any:
        """Return the worker of a model."""
        return self.service.catalog.find(name).worker


@contextmanager
def server(*models: str, **options: Any) -> Iterator[Server]:
    """Yield a server in this process, and stop its workers at the end."""
    running = Server(*models, **options)
    try:
        yield running
    finally:
        running.pool.close()


def wait_until(is_reached: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition."""
    until = time.monotonic() + seconds
    while not is_reached():
        assert time.monotonic() < until
        time.sleep(0.01)


def register(folder: str | Path, name: str = "tiny", *, alias: str = "staging", **facts: Any) -> str:
    """Add a folder to the registry as a new version, point an alias at it, and return the version."""
    registry = Registry.default()
    version = registry.add(name, Path(folder), facts=facts)
    registry.move(name, alias, version.number, verdict=None, reason="test")
    return str(version)


@contextmanager
def serve_command(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Yield the process of `tunesmith serve` on a free port and the facts of its first line; kill it at the end."""
    port = () if "--port" in arguments else ("--port", "0")
    command = [sys.executable, "-m", "tunesmith", "serve", *arguments, *port, "--json"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()


@contextmanager
def listening(running: Server, *, key: str | None = None, drain_seconds: int = 10) -> Iterator[tuple[str, int]]:
    """Yield the address of a server of this process that listens on a real socket and follows aliases."""
    bound = listen("127.0.0.1", 0)
    app = make_app(running.service, key=ApiKey(key) if key else None, hosts=allowed_hosts("127.0.0.1"), logs=False)
    http = HttpServer(app, on_stop=running.service.stop, drain_seconds=drain_seconds)
    follow = running.aliases.follow
    thread = threading.Thread(target=lambda: http.serve_until_stopped(bound, background=follow))
    thread.start()
    try:
        yield bound.getsockname()
    finally:
        http.should_exit = True
        thread.join()
        bound.close()
