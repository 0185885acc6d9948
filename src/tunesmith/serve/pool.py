"""Open models: adapters of one base share a worker, any other model has its own."""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.estimate.hardware import PrecisionSetting
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.inference.request import Limits
from tunesmith.model.quantization import trained_quantization
from tunesmith.serve.catalog import LoadedModel, facts_of
from tunesmith.serve.names import Served, version_of
from tunesmith.serve.prompts import Prompts, SystemPolicy
from tunesmith.serve.work import Done, Event, Failed, Work
from tunesmith.serve.worker import Worker

_WARM_SECONDS = 120.0
# A request that found its model before it was replaced submits its prompt within this time.
_SUBMIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How models are loaded.

    Attributes:
        precision: the precision to compute in; None is that of training.
        system: whose system turn a conversation gets.
        cache_gib: the memory of each worker for keys and values; None is a share of the free memory.
        max_tokens: the largest number of tokens of a prompt with its answer; None is what the model and memory allow.
        max_waiting: the number of requests that may wait for each worker.
    """

    precision: PrecisionSetting | None = None
    system: SystemPolicy = "recipe"
    cache_gib: float | None = None
    max_tokens: int | None = None
    max_waiting: int = 64


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model on disk: its own name, its files, and the digest that the models of one worker share."""

    name: str
    folder: ModelFolder
    group: str

    @classmethod
    def of(cls, served: Served) -> "_Opened":
        """Resolve and verify a model; an alias gives its current version."""
        folder = resolve(served.reference)
        return cls(version_of(folder) or served.name, folder, (folder.base or folder).digest())


class Pool:
    """The loaded models of a server, by their own names. Not thread-safe: one thread loads and releases."""

    def __init__(self, options: PoolOptions | None = None) -> None:
        self._options = options or PoolOptions()
        self._loaded: dict[str, LoadedModel] = {}
        self._groups: dict[str, list[Worker]] = {}
        self._unused: dict[str, float] = {}  # {name of a loaded model: since when clients cannot name it}
        self._leaving: list[Worker] = []  # workers without models, which answer their last requests

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All workers."""
        return (*(worker for workers in self._groups.values() for worker in workers), *self._leaving)

    @property
    def has_unused(self) -> bool:
        """Whether `keep_only` has to be called again."""
        return bool(self._unused)

    def open_all(self, models: Sequence[Served]) -> dict[str, LoadedModel]:
        """Load all models of the command line together; return them by their names for clients.

        Raises:
            TunesmithError: a model cannot be opened, has been altered, or does not answer.
        """
        opened = {served.name: _Opened.of(served) for served in models}
        groups: dict[str, dict[str, ModelFolder]] = {}
        for model in opened.values():
            groups.setdefault(_group_key(model, opened.values()), {})[model.name] = model.folder
        for folders in groups.values():
            worker = self._start(folders)
            self._groups.setdefault(next(m.group for m in opened.values() if m.name in folders), []).append(worker)
            for name, folder in folders.items():
                self._loaded[name] = self._describe(name, folder, worker)
        return {name: self._loaded[model.name] for name, model in opened.items()}

    def load(self, served: Served) -> LoadedModel:
        """Return the model of a reference while others are served: verified, loaded and asked once.

        Raises:
            TunesmithError: as `open_all`. Nothing has changed then.
        """
        model = _Opened.of(served)
        if model.name not in self._loaded:
            worker = self._add(model)
            try:
                self._loaded[model.name] = self._describe(model.name, model.folder, worker)
            except Exception:
                self._remove(model.name, worker)
                raise
        return self._loaded[model.name]

    def _add(self, model: _Opened) -> Worker:
        """Add a model to the worker of its base, or start a worker for it."""
        for worker in self._groups.get(model.group, ()):
            try:
                worker.add(model.name, model.folder).result()
            except RecipeError as error:
                if error.code != "different-bases":  # such as another quantization, or new tokens
                    raise
            else:
                return worker
        worker = self._start({model.name: model.folder})
        self._groups.setdefault(model.group, []).append(worker)
        return worker

    def _start(self, folders: dict[str, ModelFolder]) -> Worker:
        options = self._options
        recorded: PrecisionSetting = next(
            (folder.card["precision"] for folder in folders.values() if "precision" in folder.card), "auto"
        )
        return Worker(
            folders,
            precision=options.precision or recorded,
            cache_gib=options.cache_gib,
            max_tokens=options.max_tokens,
            max_waiting=options.max_waiting,
        )

    def _describe(self, name: str, folder: ModelFolder, worker: Worker) -> LoadedModel:
        model = LoadedModel(name, Prompts(folder, system=self._options.system), worker, facts_of(folder))
        _ask_once(model)
        return model

    def keep_only(self, models: Iterable[LoadedModel]) -> None:
        """Free the models that are not among these, after their last requests.

        Waits for nothing, so that an alias that moves meanwhile is noticed at once. Call it again while `has_unused`.
        """
        kept, now = {model.name for model in models}, time.monotonic()
        since = {name: self._unused.get(name, now) for name in self._loaded if name not in kept}
        self._unused = {name: start for name, start in since.items() if now - start < _SUBMIT_SECONDS}
        for name in since.keys() - self._unused.keys():
            self._remove(name, self._loaded.pop(name).worker)

    def _remove(self, name: str, worker: Worker) -> None:
        """Remove a model from its worker, and close a worker without models, after their last requests."""
        worker.remove(name)
        if not worker.models:
            self._groups = {
                key: [other for other in workers if other is not worker] for key, workers in self._groups.items()
            }
            self._leaving = [*(other for other in self._leaving if other.is_alive), worker]
            threading.Thread(target=worker.drain, name="drain", daemon=True).start()

    def close(self) -> None:
        """Stop all workers."""
        for worker in self.workers:
            worker.close()
        self._loaded.clear()
        self._groups.clear()
        self._leaving.clear()


def _group_key(model: _Opened, models: Iterable[_Opened]) -> str:
    """Return what the models of one worker have in common: the base, and the quantization of adapters on it.

    The base itself joins the adapters.
    """
    if model.folder.base is None:
        model = next((other for other in models if other.group == model.group and other.folder.base), model)
    return f"{model.group} {trained_quantization(model.folder)}"


def _ask_once(model: LoadedModel) -> None:
    """Let a model generate one token; raise its error if it cannot."""
    events: SimpleQueue[Event] = SimpleQueue()
    prompts = model.prompts
    work = Work(
        model.name,
        prompts.continued_ids("a"),
        Limits(1),
        decoder_prefix_ids=prompts.decoder_prefix_ids,
        timeout_s=_WARM_SECONDS,
    )
    model.worker.submit(work, events.put)
    try:
        while not isinstance(event := events.get(timeout=2 * _WARM_SECONDS), Done):
            if isinstance(event, Failed):
                raise event.error
    except Empty:
        raise TunesmithError("the model does not answer", where=model.name, code="unexpected") from None
