"""Follow the aliases of the registry: a promotion or rollback swaps the served version without losing a request."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tunesmith.core.errors import TunesmithError
from tunesmith.core.progress import log
from tunesmith.registry.database import DATABASE
from tunesmith.registry.store import Registry
from tunesmith.serve.catalog import Catalog, LoadedModel, all_names
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.names import Served
from tunesmith.serve.pool import Pool

_SECONDS, _RETRY_SECONDS = 1.0, 60.0


class Aliases:
    """The names of a server and the versions that they mean now.

    A request keeps the model that it began with; the old version is closed after its last answer. If a new version
    cannot be loaded, the one before stays, and the problem is in the log, in /readyz and in the metrics.
    """

    def __init__(self, served: Sequence[Served], catalog: Catalog, pool: Pool, metrics: Metrics) -> None:
        self._served, self._catalog, self._pool, self._metrics = served, catalog, pool, metrics
        self._models: dict[str, LoadedModel] = {}
        self._refused: dict[str, tuple[str, float]] = {}  # {name: (version that failed, time of the next attempt)}
        self._thread = ThreadPoolExecutor(1, "aliases")

    def load_all(self) -> None:
        """Load the models of all names; raise TunesmithError if one cannot be loaded."""
        self._models = self._pool.open_all(self._served)
        self._publish()

    def _publish(self) -> None:
        self._catalog.replace(all_names(self._models))

    async def follow(self) -> None:
        """Look for moved aliases until cancelled."""
        loop = asyncio.get_running_loop()
        stamp, problem = None, ""
        while True:
            await asyncio.sleep(_SECONDS)
            new_stamp = _stamp(Registry.default())
            if new_stamp == stamp and not self._refused and not self._pool.has_unused:
                continue
            try:
                await loop.run_in_executor(self._thread, self.update)
                stamp, problem = new_stamp, ""
            except Exception as error:  # such as a locked registry; whatever it is, later moves must be noticed
                before, problem = problem, f"{type(error).__name__}: {error}"
                if problem != before:
                    log(f"aliases cannot be followed: {problem}")

    def update(self) -> None:
        """Load the versions of aliases that have moved, and serve them; raise TunesmithError without a registry."""
        registry = Registry.default()
        for served in self._served:
            if served.alias is None:
                continue
            try:
                version = str(registry.resolve(served.reference))
            except TunesmithError as error:  # such as an alias that was removed
                self._catalog.failures[served.name] = error.code
                continue
            if version == self._models[served.name].name:  # perhaps moved back to it
                self._forget_failure(served.name)
            elif not self._waits(served.name, version):
                self._swap(served, version)
        self._pool.keep_only(self._models.values())

    def _forget_failure(self, name: str) -> None:
        self._refused.pop(name, None)
        self._catalog.failures.pop(name, None)

    def _waits(self, name: str, version: str) -> bool:
        """Return whether a version failed so recently that it is not tried again yet."""
        failed, again_at = self._refused.get(name, ("", 0.0))
        return version == failed and time.monotonic() < again_at

    def _swap(self, served: Served, version: str) -> None:
        before = self._models[served.name].name
        try:
            model = self._pool.load(served)
        except Exception as error:  # whatever is wrong with the new version, the old one stays
            code = error.code if isinstance(error, TunesmithError) else type(error).__name__
            self._refused[served.name] = version, time.monotonic() + _RETRY_SECONDS
            self._catalog.failures[served.name] = f"{version}: {code}"
            self._metrics.failed_swaps.inc()
            log(f"{served.name} stays at {before}; {version} cannot be served: {error}")
            return
        self._models[served.name] = model
        self._forget_failure(served.name)
        self._publish()
        self._metrics.swaps.inc()
        log(f"{served.name} is now {model.name}; it was {before}")


def _stamp(registry: Registry) -> tuple[int, int] | None:
    """Return the modification time and size of the registry's database; None if there is none."""
    try:
        status = (registry.root / DATABASE).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
