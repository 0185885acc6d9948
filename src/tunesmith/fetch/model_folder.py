"""The folder of a model on this machine, and the digest that identifies the model."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import MANIFEST, digest_file, digest_of, read_json, write_json
from tunesmith.core.user_folders import cache_root
from tunesmith.fetch.pin import Pin

CARD = "tunesmith.json"
"""The file with base, task and training of a model, in the folder of every model that tunesmith saves."""

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# The files that transformers and peft read besides the weights; other files, such as a README, do not matter.
_CONFIG_FILES = (
    *_TOKENIZER, "config.json", "generation_config.json", "adapter_config.json", CARD, "added_tokens.json",
    "chat_template.json", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_VOCABULARY_SUFFIXES = (".model", ".spm")
_MAX_KNOWN_FOLDERS = 8
_SINGLE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine.

    Attributes:
        reference: the name that the user gave.
        path: the folder of a transformers model, or of a PEFT adapter if `base` is set.
        base: the base of an adapter.
        to_fetch: whether the weights have yet to be downloaded from the hub.
        pin: the location of the model.
    """

    reference: str
    path: Path
    base: "ModelFolder | None" = None
    to_fetch: bool = False
    pin: Pin | None = None

    @property
    def root(self) -> "ModelFolder":
        """The model below all adapters: the model itself, or the root of its base."""
        return self.base.root if self.base else self

    @property
    def card(self) -> dict[str, Any]:
        """The contents of the card; empty if there is none."""
        return dict(read_json(self.path / CARD)) if (self.path / CARD).exists() else {}

    @property
    def chat_markup(self) -> str | None:
        """The chat markup that adapters added to the tokenizer of the root; None for a model without adapters."""
        if self.base is None:
            return None
        markup = self.card.get("chat_markup")
        return str(markup) if markup else self.base.chat_markup

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """The tokens that `model.add_tokens` added in the training of this model or of one below it, sorted by id."""
        tokens = self.card.get("added_tokens")
        return tuple(tokens) if tokens else self.base.added_tokens if self.base else ()

    @property
    def has_weights(self) -> bool:
        """Whether the folder has weights."""
        return any(self.path.glob("*.safetensors"))

    def digest(self) -> str:
        """Return a digest of the files that determine the model's answers, including those of its base.

        Files are hashed again only if their size or modification time has changed. The folder is recorded under the
        digest, so that `known_folders` finds it.
        """
        manifest = self.path / MANIFEST
        if manifest.exists() and (source := read_json(manifest).get("source")):
            # Converted from a `.gguf` file: the digest is of that file and the conversion, not of the converted files.
            _record_folder(str(source), self.path)
            return str(source)
        files = _digest_files(model_files(self.path))
        digest = digest_of([files, self.base.digest()]) if self.base else files
        _record_folder(digest, self.path)
        return digest

    def tokenizer_digest(self) -> str:
        """Return a digest of the files of the tokenizer."""
        return digest_of({name: digest_file(self.path / name) for name in _TOKENIZER if (self.path / name).exists()})


def model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that transformers and peft read, sorted by name."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    config = {name for name in names if name in _CONFIG_FILES or name.endswith(_VOCABULARY_SUFFIXES)}
    return [folder / name for name in sorted(config | _weight_files(folder, names))]


def _weight_files(folder: Path, names: set[str]) -> set[str]:
    """Return the weight files that transformers reads: the unsharded file, else the index and its shards.

    If neither is complete, return all weight files. Adapter weights are always included.
    """
    weights = {name for name in names if name.endswith(".safetensors")}
    adapters = {name for name in weights if name.startswith("adapter_")}
    if _SINGLE_FILE in weights:
        return {_SINGLE_FILE} | adapters
    if _INDEX in names:
        with contextlib.suppress(TunesmithError, AttributeError, TypeError):
            shards = set(read_json(folder / _INDEX)["weight_map"].values())
            if shards <= weights:
                return {_INDEX, *shards} | adapters
    return weights | ({_INDEX} & names)


def known_folders(digest: str) -> Iterator[Path]:
    """Yield the folders of this machine in which a model with this digest was found."""
    with contextlib.suppress(TunesmithError, OSError):
        yield from map(Path, read_json(_folders_file(digest)))


def _folders_file(digest: str) -> Path:
    return cache_root() / "places" / f"{digest[:32]}.json"


def _record_folder(digest: str, folder: Path) -> None:
    path = str(folder.resolve())
    known = [str(other) for other in known_folders(digest)]
    if path not in known:
        write_json(_folders_file(digest), [path, *known][:_MAX_KNOWN_FOLDERS])


def _digest_files(paths: list[Path]) -> str:
    """Return the digest of files, cached by path, size and modification time."""
    stamp = digest_of([[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths])
    cached = cache_root() / "digests" / f"{stamp[:32]}.json"
    if cached.exists():
        return str(read_json(cached))
    digest = digest_of({p.name: digest_file(p) for p in paths})
    write_json(cached, digest)
    return digest
