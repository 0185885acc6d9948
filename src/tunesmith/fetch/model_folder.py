"""A model as a folder on this machine, and the digest that identifies it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import MANIFEST, digest_file, digest_of, read_json, write_json
from tunesmith.core.user_folders import cache_root
from tunesmith.fetch.pin import Pin

CARD = "tunesmith.json"
"""Beside the weights of every model that tunesmith saved: its base, its task, how it was made."""

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# The files that decide what a model answers. Others may come and go: a README, weights in other formats, .DS_Store.
_DECIDE = (
    *_TOKENIZER, "config.json", "generation_config.json", "adapter_config.json", CARD, "added_tokens.json",
    "chat_template.json", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_VOCABULARIES = (".model", ".spm")
_MOST_PLACES = 8
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine.

    `path` holds a transformers model, or a PEFT adapter when `base` is set; `reference` is what the user wrote, and
    `pin` is where it was found. If `to_fetch` is set, its weights are still on the hub.
    """

    reference: str
    path: Path
    base: "ModelFolder | None" = None
    to_fetch: bool = False
    pin: Pin | None = None

    @property
    def root(self) -> "ModelFolder":
        """The model whose weights come first: the base of an adapter, else the model itself."""
        return self.base.root if self.base else self

    @property
    def card(self) -> dict[str, object]:
        """What tunesmith wrote beside the weights, or nothing."""
        return dict(read_json(self.path / CARD)) if (self.path / CARD).exists() else {}

    @property
    def chat_markup(self) -> str | None:
        """The markup that adapters added to the root's tokenizer; a whole model has its own beside it."""
        if self.base is None:
            return None
        own = self.card.get("chat_markup")
        return str(own) if own else self.base.chat_markup

    @property
    def has_weights(self) -> bool:
        """Whether weights lie in the folder."""
        return any(self.path.glob("*.safetensors"))

    def digest(self) -> str:
        """Return a digest of the files that decide what the model answers, its base's included.

        Files are hashed again only if their size or time of change differs. The folder is recorded under its digest.
        """
        manifest = self.path / MANIFEST
        if manifest.exists() and (source := read_json(manifest).get("source")):
            # Converted by us: what it was made from counts, not how transformers wrote it down.
            _remember(str(source), self.path)
            return str(source)
        own = _digest_of_files(model_files(self.path))
        digest = digest_of([own, self.base.digest()]) if self.base else own
        _remember(digest, self.path)
        return digest

    def tokenizer_digest(self) -> str:
        """Return a digest of the files that decide how text becomes tokens."""
        return digest_of({name: digest_file(self.path / name) for name in _TOKENIZER if (self.path / name).exists()})


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model's folder that transformers and peft read, in order: they decide what it answers."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    decide = {name for name in names if name in _DECIDE or name.endswith(_VOCABULARIES)}
    return [folder / name for name in sorted(decide | _weights(folder, names))]


def _weights(folder: Path, names: set[str]) -> set[str]:
    """Return the files of weights that are read: the whole one, else the shards of the index, else all there are."""
    found = {name for name in names if name.endswith(".safetensors")}
    adapters = {name for name in found if name.startswith("adapter_")}
    if _WHOLE in found:
        return {_WHOLE} | adapters
    if _INDEX in names:
        with contextlib.suppress(TunesmithError, AttributeError, TypeError):
            parts = set(read_json(folder / _INDEX)["weight_map"].values())
            if parts <= found:
                return {_INDEX, *parts} | adapters
    return found | ({_INDEX} & names)


def known_folders(digest: str) -> Iterator[Path]:
    """Yield the folders in which a model with this digest was seen on this machine."""
    with contextlib.suppress(TunesmithError, OSError):
        yield from map(Path, read_json(_memory(digest)))


def _memory(digest: str) -> Path:
    return cache_root() / "places" / f"{digest[:32]}.json"


def _remember(digest: str, folder: Path) -> None:
    place = str(folder.resolve())
    known = [str(path) for path in known_folders(digest)]
    if place not in known:
        write_json(_memory(digest), [place, *known][:_MOST_PLACES])


def _digest_of_files(paths: list[Path]) -> str:
    """Digest files, remembering by path, size and time of change, so that a second look costs nothing."""
    stamp = digest_of([[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths])
    memory = cache_root() / "digests" / f"{stamp[:32]}.json"
    if memory.exists():
        return str(read_json(memory))
    digest = digest_of({p.name: digest_file(p) for p in paths})
    write_json(memory, digest)
    return digest
