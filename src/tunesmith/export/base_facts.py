"""The base of a model: its public name and its licence, from the base's own files and card."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.rundir import RunDir
from tunesmith.fetch.pin import Pin
from tunesmith.fetch.pypi import PUBLISHED_AS
from tunesmith.fetch.reference import ModelFolder
from tunesmith.registry.store import Registry

_README = "README.md"
_LICENCE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """The base of a model.

    Attributes:
        name: its name on the hub, else a name without folders.
        is_on_hub: whether `name` is on the hub.
        revision: the commit on the hub, if it is known.
        difference: how its weights differ from those on the hub; empty if they do not.
        licence: the keys `license`, `license_name` and `license_link` of its card, as far as it has them.
    """

    name: str
    is_on_hub: bool = False
    revision: str | None = None
    difference: str = ""
    licence: Mapping[str, str] = field(default_factory=dict)

    @property
    def licence_name(self) -> str | None:
        """The name of its licence, else its identifier; None if its files and its card do not state one."""
        return self.licence.get("license_name") or self.licence.get("license")

    @property
    def is_same(self) -> bool:
        """Whether the model on the hub is the base as trained."""
        return self.is_on_hub and not self.difference


def base_facts(model: ModelFolder) -> BaseFacts | None:
    """Return the facts of the base that a model was tuned from; None if the model has none, or none is recorded."""
    if model.base is not None:
        root = model.root
        return _facts(root.pin or Pin("folder", str(root.path)), root.path)
    pin = model.pin
    if pin is not None and pin.kind == "run":
        run = RunDir(pin.at)
        recorded = (run.manifest("prepare") or {}).get("base")
        return _facts(Pin(**recorded["pin"]).absolute_in(run.path)) if recorded else None
    if pin is not None and pin.kind == "registry":
        pins = Registry.default().resolve(pin.at).facts.get("base_pins") or ()
        return _facts(Pin(**pins[-1])) if pins else None
    return None


def _facts(pin: Pin, folder: Path | None = None) -> BaseFacts:
    if pin.kind == "hub":
        licence = _hub_licence(pin.at, pin.version)
        return BaseFacts(pin.at, is_on_hub=True, revision=pin.version, licence=licence)
    if pin.kind == "pypi" and pin.at in PUBLISHED_AS:
        name, identifier, difference = PUBLISHED_AS[pin.at]
        return BaseFacts(name, is_on_hub=True, difference=difference, licence={"license": identifier})
    if pin.kind == "gguf":
        return BaseFacts(Path(pin.at).name, licence=_gguf_licence(Path(pin.at)))
    folder = folder or (Path(pin.at) if pin.kind == "folder" else None)
    licence = _readme_licence(folder / _README) if folder else {}
    return BaseFacts(Path(pin.at).name, licence=licence)


def _hub_licence(name: str, revision: str | None) -> dict[str, str]:
    """Return the licence in the card of a model on the hub; empty if the card cannot be read."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    with contextlib.suppress(HfHubHTTPError, OSError, ValueError):
        return _readme_licence(Path(hf_hub_download(name, _README, revision=revision)))
    return {}


def _readme_licence(readme: Path) -> dict[str, str]:
    """Return the licence in the metadata of a card; empty if there is no card, or it does not state one."""
    from huggingface_hub.repocard import metadata_load

    metadata: Any = None
    with contextlib.suppress(Exception):  # YAML of others, whose errors have no common class
        metadata = metadata_load(readme)
    found = metadata if isinstance(metadata, dict) else {}
    return {key: found[key] for key in _LICENCE_KEYS if isinstance(found.get(key), str) and found[key].strip()}


def _gguf_licence(file: Path) -> dict[str, str]:
    """Return the licence in the metadata of a `.gguf` file; empty if the file is gone or does not state one."""
    from gguf import GGUFReader, Keys

    keys = (Keys.General.LICENSE, Keys.General.LICENSE_NAME, Keys.General.LICENSE_LINK)
    with contextlib.suppress(OSError, ValueError):
        reader = GGUFReader(file)
        fields = {name: reader.get_field(key) for name, key in zip(_LICENCE_KEYS, keys, strict=True)}
        return {name: str(field.contents()) for name, field in fields.items() if field is not None}
    return {}
