"""The origin of a model as metadata of a GGUF file, under the keys that model pages and llama.cpp show."""

from collections.abc import Mapping
from typing import Any

from tunesmith.export.base_facts import BaseFacts, base_facts
from tunesmith.export.provenance import Provenance, provenance_of
from tunesmith.fetch.reference import ModelFolder

_HUB = "https://huggingface.co"


def gguf_metadata(model: ModelFolder) -> dict[str, Any]:
    """Return the name of a model, its base with its licence, and the datasets of the hub that it was tuned on."""
    origin, base = provenance_of(model), base_facts(model)
    return {
        "general.name": origin.version or origin.name,
        **(_base(base) if base is not None else {}),
        **_datasets(origin),
    }


def _base(base: BaseFacts) -> Mapping[str, Any]:
    values: dict[str, Any] = {
        "general.base_model.count": 1,
        "general.base_model.0.name": base.name,
        **{f"general.{key.replace('_', '.')}": value for key, value in base.licence.items()},
    }
    if base.revision:
        values["general.base_model.0.version"] = base.revision
    if base.is_on_hub:
        values["general.base_model.0.repo_url"] = f"{_HUB}/{base.name}"
    return values


def _datasets(origin: Provenance) -> Mapping[str, Any]:
    names = origin.hub_datasets
    values: dict[str, Any] = {f"general.dataset.{i}.name": name for i, name in enumerate(names)}
    values |= {f"general.dataset.{i}.repo_url": f"{_HUB}/datasets/{name}" for i, name in enumerate(names)}
    return {"general.dataset.count": len(names), **values} if names else {}
