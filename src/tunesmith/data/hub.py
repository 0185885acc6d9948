"""Datasets on the hub, or folders laid out like one: which commit is meant, and its rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.local_files import file_format, resolve_path, wrap_library_errors
from tunesmith.recipe.data_source import HubSource

_TIMEOUT_SECONDS = 10


class _Unreachable(DataError):
    """The hub did not answer."""


def resolve_commit(source: HubSource, *, folder: Path) -> str | None:
    """Return the commit that a dataset's reference means now, to be written down and read from then on.

    None for a local folder, and where neither the hub nor the cache can tell.

    Raises:
        DataError: the hub answers that the dataset or revision does not exist.
    """
    if local_dataset_folder(source, folder):
        return None
    if source.revision is not None and _is_commit(source.revision):
        return source.revision
    try:
        return _commit(source)
    except _Unreachable:
        return None


def read_hub_rows(source: HubSource, folder: Path, label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, values) of every row of a dataset; `label` is what its rows are called by."""
    from datasets import load_dataset

    local = local_dataset_folder(source, folder)
    if local and (mark := next((mark for mark in ("[", "]", "::") if mark in str(local)), None)):
        raise DataError(
            f"is in a folder whose path has `{mark}`, which the `datasets` library takes for a pattern",
            where=source.hub,
            hint="name its files under `file:`, or move the folder",
        )
    reference = str(local) if local else _reference(source)
    commit = None if local else _commit(source)
    with wrap_library_errors(label):
        splits = load_dataset(reference, name=source.config, revision=commit, streaming=True)
        if source.split not in splits:
            raise DataError(f"there is no split `{source.split}`", where=label, hint=f"splits: {', '.join(splits)}")
        for number, values in enumerate(splits[source.split], 1):
            yield f"{label} row {number}", dict(values)


def cache_dataset(source: HubSource, *, folder: Path) -> None:
    """Have a copy of a dataset in the cache of `datasets`, for machines that do not ask the hub.

    Raises:
        DataError: it cannot be had.
    """
    from datasets import load_dataset

    if not local_dataset_folder(source, folder):
        with wrap_library_errors(_asked(source)):
            load_dataset(_reference(source), name=source.config, revision=_commit(source))


def local_dataset_folder(source: HubSource, folder: Path) -> Path | None:
    """Return the folder that a source names instead of a dataset on the hub; raise RecipeError for its revision."""
    path = resolve_path(source.hub, folder)
    if not path.is_dir():
        return None
    if source.revision is not None:
        raise RecipeError("`revision` has no effect on a local folder", where=source.hub, hint="leave it out")
    return path.absolute()


def _commit(source: HubSource) -> str:
    """Return the commit of a dataset on the hub, or of its cached copy when offline.

    Asked first, because an unreachable hub fails here at once and in `load_dataset` after half a minute.
    """
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if source.hub.count("/") != 1 or source.hub.startswith((".", "/", "~")):
        hint = "for a file, write `file:` in place of `hub:`" if file_format(Path(source.hub)) else None
        raise DataError("is neither `org/name` of a dataset nor a folder", where=source.hub, hint=hint)
    if config.HF_HUB_OFFLINE:
        return _cached_commit(source)
    try:
        info = HfApi().dataset_info(source.hub, revision=source.revision, timeout=_TIMEOUT_SECONDS)
    except RevisionNotFoundError as error:
        raise DataError(f"the dataset has no revision `{source.revision}`", where=source.hub) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        hint = "check the name; if it is private or gated, log in with `hf auth login`"
        raise DataError(
            "the hub has no such dataset, or does not show it to you", where=source.hub, hint=hint
        ) from error
    except Exception as error:  # whose errors these are depends on the HTTP client that the hub's library uses
        hint = "check the connection; with HF_HUB_OFFLINE=1 a copy that `datasets` has cached is read"
        raise _Unreachable(f"the hub cannot be reached ({error})", where=_asked(source), hint=hint) from error
    return str(info.sha)


def _cached_commit(source: HubSource) -> str:
    """Return the commit of the cached copy; `datasets` would read it whatever revision was asked for."""
    from datasets import load_dataset_builder

    try:
        cached = load_dataset_builder(_reference(source), name=source.config).hash
    except (ConnectionError, ValueError) as error:
        reason = "there is no cached copy" if isinstance(error, ConnectionError) else " ".join(str(error).split())
        problem = f"the hub is not asked, because HF_HUB_OFFLINE is set, and {reason}"
        hint = "unset HF_HUB_OFFLINE, or load it once on a machine with a connection"
        raise _Unreachable(problem, where=_asked(source), hint=hint) from error
    if source.revision not in (None, cached):
        problem = f"the cached copy is of revision {cached}, not {source.revision}, and HF_HUB_OFFLINE is set"
        raise DataError(problem, where=source.hub, hint=f"unset HF_HUB_OFFLINE, or ask for revision {cached}")
    return str(cached)


def _reference(source: HubSource) -> str:
    """Return what `datasets` calls it; without hf:// a folder of the same name beside us would be read instead."""
    return f"hf://datasets/{source.hub}"


def _asked(source: HubSource) -> str:
    return source.hub + (f"@{source.revision}" if source.revision else "")


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")
