"""Where tunesmith keeps what outlives a run: the cache and the registry of this user."""

import contextlib
import os
from pathlib import Path

from tunesmith.core.errors import RecipeError

CACHE, REGISTRY = "TUNESMITH_CACHE", "TUNESMITH_REGISTRY"
FOLDERS_HINT = f"set {CACHE} and {REGISTRY} to folders that you may write to"


def cache_root() -> Path:
    """Return the folder of the cache: $TUNESMITH_CACHE, else one in the XDG cache folder.

    Raises:
        RecipeError: no variable names a folder, and this user has no home.
    """
    return _root(CACHE, "XDG_CACHE_HOME", Path(".cache"), Path("tunesmith"))


def registry_root() -> Path:
    """Return the folder of the registry: $TUNESMITH_REGISTRY, else one in the XDG data folder.

    Raises:
        RecipeError: no variable names a folder, and this user has no home.
    """
    return _root(REGISTRY, "XDG_DATA_HOME", Path(".local", "share"), Path("tunesmith", "registry"))


def check_writable(*folders: Path, hint: str = FOLDERS_HINT) -> None:
    """Raise RecipeError if this user cannot write to one of these folders, which need not exist yet."""
    for folder in folders:
        path = folder.absolute()
        existing = next(place for place in (path, *path.parents) if place.exists())
        if not existing.is_dir():
            what = "is a file, not a folder" if existing == path else f"is below a file, {existing}"
            raise RecipeError(what, where=str(folder), code="wrong-path", hint=hint)
        if not os.access(existing, os.W_OK | os.X_OK):
            raise RecipeError(
                f"cannot be written by this user (uid {os.getuid()})", where=str(folder), code="permission", hint=hint
            )


def is_user_folder(path: Path) -> bool:
    """Whether `path` is in the cache or the registry, or contains one of them."""
    for root in (cache_root, registry_root):
        with contextlib.suppress(RecipeError, OSError):
            ours, place = root().absolute(), path.absolute()
            if place.is_relative_to(ours) or ours.is_relative_to(place):
                return True
    return False


def _root(variable: str, xdg: str, below_home: Path, own: Path) -> Path:
    if named := os.environ.get(variable):
        return Path(os.path.expanduser(named))
    shared = Path(os.environ.get(xdg, ""))
    if shared.is_absolute():  # the XDG rules: a relative path is ignored
        return shared / own
    home = os.path.expanduser("~")  # pathlib's own raises RuntimeError for a user without a home
    if home in ("~", ""):
        raise RecipeError(
            f"this user (uid {os.getuid()}) has no home folder, and {variable} is not set",
            code="no-home",
            hint=FOLDERS_HINT,
        )
    return Path(home) / below_home / own
