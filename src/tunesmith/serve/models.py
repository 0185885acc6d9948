"""The models of one worker: a base and adapters of it, which can be added and removed while requests are answered."""

import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count

from tunesmith.core.errors import RecipeError
from tunesmith.estimate.hardware import PrecisionSetting
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.adapter_set import AdapterSet


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that requests can name.

    Attributes:
        name: its name.
        folder: its files.
        adapter: its name in the adapter set, which no other model had before; None for the base.
        shares_batches: whether its requests are answered together with those of other models. Otherwise (DoRA, trained
            token rows, adapted embeddings or experts) they wait until the requests of others have been answered.
    """

    name: str
    folder: ModelFolder
    adapter: str | None
    shares_batches: bool


class Models:
    """The base and the adapters of a worker. `names` and `require` can be called from any thread.

    Args:
        folders: the models by name: adapters of one base, the base itself, or a single model.
        precision: the precision to compute in.

    Raises:
        RecipeError: the models have different bases, or one cannot be opened.
    """

    def __init__(self, folders: Mapping[str, ModelFolder], precision: PrecisionSetting) -> None:
        bases = {folder.base.digest() for folder in folders.values() if folder.base}
        # An adapter of which another model is an adapter is merged into the base.
        adapters = {name: folder for name, folder in folders.items() if folder.base and folder.digest() not in bases}
        base = next((folder.base for folder in adapters.values()), None) or next(iter(folders.values()))
        self._numbers = count()
        keys = {name: self._new_key(name) for name in adapters}
        self.adapters = AdapterSet({keys[name]: adapters[name] for name in adapters}, precision=precision, base=base)
        self._base_digest = base.digest()
        self._lock = threading.Lock()
        self._models: dict[str, ServedModel] = {}
        for name, folder in folders.items():
            self._models[name] = self._served(name, folder, keys.get(name))
        self._users: Counter[str | None] = Counter()
        self._leaving: dict[str, Future[None]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models."""
        return tuple(self._models)

    def require(self, name: str) -> ServedModel:
        """Return a model; raise RecipeError if there is none of this name."""
        model = self._models.get(name)
        if model is None:
            hint = f"use one of {', '.join(self.names)}" if self.names else None
            raise RecipeError(f"there is no model `{name}`", hint=hint, code="no-such-model")
        return model

    def add(self, name: str, folder: ModelFolder) -> None:
        """Open a model and check it with a forward pass, in the thread of the worker.

        Raises:
            RecipeError: the name is in use, or the model is not an adapter of this base that can be added later.
        """
        if name in self._models:
            raise RecipeError(f"there is already a model `{name}`", code="exists")
        key = None
        if folder.digest() != self._base_digest:
            key = self._new_key(name)
            self.adapters.add(key, folder)
        model = self._served(name, folder, key)
        with self._lock:
            self._models = {**self._models, name: model}

    def withdraw(self, name: str) -> ServedModel:
        """Take no new requests for a model; return it. Can be called from any thread."""
        with self._lock:
            model = self.require(name)
            self._models = {other: each for other, each in self._models.items() if other != name}
            return model

    def remove(self, model: ServedModel, done: "Future[None]") -> None:
        """Free a withdrawn model when its last request has ended, in the thread of the worker; then set `done`."""
        if model.adapter is None:
            done.set_result(None)
        elif self._users[model.adapter]:
            self._leaving[model.adapter] = done
        else:
            self._free(model.adapter, done)

    def use(self, adapter: str | None) -> None:
        """Note that a request uses an adapter."""
        self._users[adapter] += 1

    def leave(self, adapter: str | None) -> str | None:
        """Note that a request has ended; return the adapter if that has freed it."""
        self._users[adapter] -= 1
        if self._users[adapter] or adapter not in self._leaving or adapter is None:
            return None
        self._free(adapter, self._leaving.pop(adapter))
        return adapter

    def _free(self, adapter: str, done: "Future[None]") -> None:
        try:
            self.adapters.remove(adapter)
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def _new_key(self, name: str) -> str:
        return f"{name}#{next(self._numbers)}"

    def _served(self, name: str, folder: ModelFolder, key: str | None) -> ServedModel:
        if key is None and folder.digest() != self._base_digest:
            message = f"`{folder.reference}` is another base than that of the other models"
            raise RecipeError(message, where=name, hint="serve it with another worker", code="different-bases")
        return ServedModel(name, folder, key, self.adapters.group(key) is None)
