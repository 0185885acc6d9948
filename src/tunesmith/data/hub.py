"""Read datasets on the hub, and local folders with the layout of such a dataset."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.find_files import file_format, resolve_path
from tunesmith.data.local_files import wrap_library_errors
from tunesmith.recipe.data_source import HubSource

_TIMEOUT_SECONDS = 10


class HubUnreachable(DataError):
    """The hub cannot be reached or HF_HUB_OFFLINE is set, and there is no cached copy."""

    code = "source-unreachable"


def resolve_commit(source: HubSource, *, folder: Path) -> str | None:
    """Return the commit that a dataset's revision refers to now, to pin it.

    Return None for a local folder, and if the hub is unreachable and no copy is cached.

    Raises:
        DataError: the dataset or the revision does not exist.
    """
    if local_dataset_folder(source, folder):
        return None
    if re.fullmatch("[0-9a-f]{40}", source.revision or ""):
        return source.revision
    try:
        return _find_commit(source)
    except HubUnreachable:
        return None


def read_hub_rows(source: HubSource, folder: Path, label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the location and the values of every row of a dataset; the location starts with `label`."""
    with wrap_library_errors(label):
        splits = _open_splits(source, folder)
        if source.split not in splits:
            hint = f"the dataset has {', '.join(splits)}"
            raise DataError(f"there is no split `{source.split}`", where=label, hint=hint, code="unknown-split")
        for number, values in enumerate(splits[source.split], 1):
            yield f"{label} row {number}", dict(values)


def list_splits(source: HubSource, *, folder: Path) -> list[str]:
    """Return the names of a dataset's splits; raise DataError if it does not exist or cannot be reached."""
    with wrap_library_errors(source.hub):
        return list(_open_splits(source, folder))


def _open_splits(source: HubSource, folder: Path) -> dict[str, Any]:
    """Return the splits of a dataset by name, streaming."""
    from datasets import load_dataset

    local = local_dataset_folder(source, folder)
    if local and (mark := next((mark for mark in ("[", "]", "::") if mark in str(local)), None)):
        problem = f"is in a folder whose path has `{mark}`, which the `datasets` library interprets as a pattern"
        hint = "list its files under `file:`, or move the folder"
        raise DataError(problem, where=source.hub, hint=hint, code="wrong-path")
    reference = str(local) if local else _reference(source)
    commit = None if local else _find_commit(source)
    return dict(load_dataset(reference, name=source.config, revision=commit, streaming=True))


def cache_dataset(source: HubSource, *, folder: Path) -> None:
    """Download a dataset into the cache of `datasets`, for machines that are offline.

    Raises:
        DataError: the dataset does not exist or cannot be reached.
    """
    from datasets import load_dataset

    if not local_dataset_folder(source, folder):
        with wrap_library_errors(_with_revision(source)):
            load_dataset(_reference(source), name=source.config, revision=_find_commit(source))


def local_dataset_folder(source: HubSource, folder: Path) -> Path | None:
    """Return the local folder that a source names, or None; raise RecipeError if it has a revision."""
    path = resolve_path(source.hub, folder)
    if not path.is_dir():
        return None
    if source.revision is not None:
        problem = "`revision` has no effect on a local folder"
        raise RecipeError(problem, where=source.hub, hint="remove it", code="no-effect")
    return path.absolute()


def _find_commit(source: HubSource) -> str:
    """Return the commit of a dataset on the hub, or of its cached copy when offline.

    Call this before `load_dataset`, which takes half a minute to fail if the hub is unreachable.
    """
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if source.hub.count("/") != 1 or source.hub.startswith((".", "/", "~")):
        hint = "for a file, write `file:` instead of `hub:`" if file_format(Path(source.hub)) else None
        problem = "is neither a dataset `org/name` nor a folder"
        raise DataError(problem, where=source.hub, hint=hint, code="unknown-dataset")
    if config.HF_HUB_OFFLINE:
        return _find_cached_commit(source)
    try:
        info = HfApi().dataset_info(source.hub, revision=source.revision, timeout=_TIMEOUT_SECONDS)
    except RevisionNotFoundError as error:
        problem = f"the dataset has no revision `{source.revision}`"
        raise DataError(problem, where=source.hub, code="unknown-dataset") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        problem = "the hub has no such dataset, or you may not read it"
        hint = "check the name; if the dataset is private or gated, log in with `hf auth login`"
        raise DataError(problem, where=source.hub, hint=hint, code="unknown-dataset") from error
    except Exception as error:  # the types depend on the HTTP client of huggingface_hub
        hint = "check the connection; with HF_HUB_OFFLINE=1 the cached copy is used"
        raise HubUnreachable(f"the hub cannot be reached ({error})", where=_with_revision(source), hint=hint) from error
    return str(info.sha)


def _find_cached_commit(source: HubSource) -> str:
    """Return the commit of the cached copy, and check the revision, which `datasets` ignores when offline."""
    from datasets import load_dataset_builder

    try:
        cached = load_dataset_builder(_reference(source), name=source.config).hash
    except (ConnectionError, ValueError) as error:
        reason = "there is no cached copy" if isinstance(error, ConnectionError) else " ".join(str(error).split())
        problem = f"HF_HUB_OFFLINE is set, and {reason}"
        hint = "unset HF_HUB_OFFLINE, or load the dataset once on a machine with a connection"
        raise HubUnreachable(problem, where=_with_revision(source), hint=hint) from error
    if source.revision not in (None, cached):
        problem = f"HF_HUB_OFFLINE is set, and the cached copy is revision {cached} instead of {source.revision}"
        hint = f"unset HF_HUB_OFFLINE, or set revision: {cached}"
        raise DataError(problem, where=source.hub, hint=hint, code="source-unreachable")
    return str(cached)


def _reference(source: HubSource) -> str:
    """Return the dataset's address. Without hf://, `datasets` would prefer a local folder of the same name."""
    return f"hf://datasets/{source.hub}"


def _with_revision(source: HubSource) -> str:
    return source.hub + (f"@{source.revision}" if source.revision else "")
