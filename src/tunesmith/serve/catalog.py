"""The models that the server has, by name. Names are replaced as a whole, so a request sees one version only."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tunesmith.core.errors import DamagedFile
from tunesmith.core.verdict_reader import parse_verdict
from tunesmith.fetch.reference import ModelFolder
from tunesmith.registry.store import Registry
from tunesmith.serve.errors import ApiError
from tunesmith.serve.names import base_name, version_of
from tunesmith.serve.prompts import Prompts
from tunesmith.serve.worker import Worker

_FINGERPRINT_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a model that clients can see.

    Attributes:
        base: the model that it was trained from.
        version: its version in the registry, such as shop-sql@3.
        verdict: {verdict, metric, base, tuned, gain, low, high, rows} of the promotion.
        digest: the digest of the files that determine its answers.
        created: seconds since 1970.
    """

    base: str
    version: str | None
    verdict: Mapping[str, Any] | None
    digest: str
    created: int


def facts_of(folder: ModelFolder) -> Facts:
    """Return the facts about a model."""
    reference = version_of(folder)
    version = Registry.default().resolve(reference) if reference else None
    created = datetime.fromisoformat(version.added).timestamp() if version else time.time()
    verdict = _summary(version.facts.get("verdict")) if version else None
    return Facts(base_name(folder), reference, verdict, folder.digest(), int(created))


def _summary(stored: Any) -> dict[str, Any] | None:
    """Return the main comparison of a stored verdict; None if there is none, or if it is damaged."""
    try:
        primary = parse_verdict(stored).primary if stored is not None else None
    except DamagedFile:  # the version was promoted by force
        return None
    if primary is None:
        return None
    keys = ("metric", "base", "tuned", "gain", "low", "high", "confidence", "rows")
    return {"verdict": primary.verdict, **{key: getattr(primary, key) for key in keys}}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that answers requests.

    Attributes:
        name: its own name: the version if it is in the registry. Answers carry it, so that a client knows which
            version answered.
        worker: the thread that runs it, under the same name.
    """

    name: str
    prompts: Prompts
    worker: Worker
    facts: Facts

    @property
    def max_tokens(self) -> int:
        """The maximum number of tokens of a prompt with its answer."""
        return self.worker.capacity.slot_tokens

    @property
    def fingerprint(self) -> str:
        """A short digest of the model's files."""
        return f"fp_{self.facts.digest[:_FINGERPRINT_DIGITS]}"

    def to_json(self, name: str) -> dict[str, Any]:
        """Return the model as an entry of /v1/models under a name."""
        prompts, facts = self.prompts, self.facts
        endpoints = [*(["/v1/chat/completions"] if prompts.takes_messages else []), "/v1/completions"]
        return {
            "id": name, "object": "model", "created": facts.created, "owned_by": "tunesmith",
            "root": self.name, "base": facts.base, "version": facts.version, "verdict": facts.verdict,
            "digest": facts.digest, "max_model_len": self.max_tokens,
            "default_max_tokens": prompts.default_limit, "default_temperature": 0, "endpoints": endpoints,
            "task": prompts.task if prompts.is_trained else None, "system": prompts.system_turn,
            "prompt_template": prompts.template, "columns": list(prompts.columns),
        }  # fmt: skip


@dataclass(slots=True)
class Catalog:
    """The loaded models by each of their names, and the replacements that failed.

    Attributes:
        failures: {name: the problem} of models whose newest version could not be loaded; the one before is served.
    """

    _models: Mapping[str, LoadedModel] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def replace(self, models: Mapping[str, LoadedModel]) -> None:
        """Serve these models under these names, and no others."""
        self._models = dict(models)

    @property
    def models(self) -> Mapping[str, LoadedModel]:
        """The models by name."""
        return self._models

    def find(self, name: str) -> LoadedModel:
        """Return the model with a name; raise ApiError if there is none."""
        model = self._models.get(name)
        if model is None:
            listed = ", ".join(self._models)
            message = f"there is no model `{name}`; this server has {listed}"
            raise ApiError(404, message, param="model", reason="model_not_found")
        return model


def all_names(models: Mapping[str, LoadedModel]) -> dict[str, LoadedModel]:
    """Add to the names of the command line those that follow from them.

    These are the name of each version, and NAME without its alias if only one model of that name is served.
    """
    names = dict(models)
    for model in models.values():
        names.setdefault(model.name, model)
    short: dict[str, list[LoadedModel]] = {}
    for name, model in models.items():
        if "@" in name:
            short.setdefault(name.partition("@")[0], []).append(model)
    for name, candidates in short.items():
        if len(candidates) == 1:
            names.setdefault(name, candidates[0])
    return names
