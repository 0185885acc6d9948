"""The command `serve`: check its options, load the models, and answer requests until a signal."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.serve.aliases import Aliases
from tunesmith.serve.app import ServerLimits, Service, make_app
from tunesmith.serve.catalog import Catalog
from tunesmith.serve.guard import allowed_hosts, read_key
from tunesmith.serve.http_server import HttpServer, listen
from tunesmith.serve.names import Served, base_of, require_distinct
from tunesmith.serve.pool import Pool, PoolOptions
from tunesmith.serve.worker import Worker


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of `serve`, as docs/cli.md describes them."""

    host: str = "127.0.0.1"
    port: int = 8000
    base: bool = False
    pool: PoolOptions = field(default_factory=PoolOptions)
    api_key_file: Path | None = None
    allowed_hosts: Sequence[str] = ()
    answer_seconds: float = 300.0
    drain_seconds: int = 30


def serve_models(models: Sequence[str], options: ServeOptions, *, announce: Callable[[dict[str, Any]], None]) -> None:
    """Serve models until SIGTERM or Ctrl-C.

    Args:
        models: references, or NAME=REFERENCE.
        announce: called with the address and the models when the server is ready for requests.

    Raises:
        TunesmithError: an option is wrong, the port is taken, or a model cannot be loaded.
    """
    served = [Served.parse(argument) for argument in models]
    key = read_key(options.host, options.api_key_file)
    if options.base:
        served.append(base_of(served))
    require_distinct(served)
    bound = listen(options.host, options.port)  # before the models, which may take minutes
    pool = Pool(options.pool)
    try:
        service = Service(Catalog(), limits=ServerLimits(answer_seconds=options.answer_seconds))
        aliases = Aliases(served, service.catalog, pool, service.metrics)
        aliases.load_all()
        service.metrics.watch(lambda: [worker.stats for worker in pool.workers])
        app = make_app(service, key=key, hosts=allowed_hosts(options.host, options.allowed_hosts))
        server = HttpServer(app, on_stop=service.stop, drain_seconds=options.drain_seconds)
        announce(_announcement(service, pool, bound, has_key=key is not None))
        server.serve_until_stopped(bound, background=aliases.follow)
    finally:
        bound.close()
        pool.close()


def _announcement(service: Service, pool: Pool, bound: socket.socket, *, has_key: bool) -> dict[str, Any]:
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    names = {name: model.name for name, model in service.catalog.models.items()}
    return {
        "url": f"http://{shown}:{port}/v1",
        "models": names,
        "api_key": has_key,
        "prompts": _templates(service.catalog),
        "workers": [_worker_facts(worker) for worker in pool.workers],
    }


def _templates(catalog: Catalog) -> dict[str, str]:
    """Return the prompt templates that messages do not get, by model: those with text around their column."""
    models = {model.name: model.prompts for model in catalog.models.values() if model.prompts.task == "chat"}
    return {name: str(prompts.template) for name, prompts in models.items() if prompts.has_text_in_template}


def _worker_facts(worker: Worker) -> dict[str, Any]:
    capacity = asdict(worker.capacity)
    return {"models": list(worker.models), "precision": worker.precision, **capacity}
