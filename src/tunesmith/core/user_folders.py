"""The folders that all runs of a user share: the cache and the registry."""

import contextlib
import os
from pathlib import Path

from tunesmith.core.errors import RecipeError

CACHE, REGISTRY = "TUNESMITH_CACHE", "TUNESMITH_REGISTRY"
FOLDERS_HINT = f"set {CACHE} and {REGISTRY} to folders that you may write to"


def cache_root() -> Path:
    """Return the cache folder: $TUNESMITH_CACHE, or `tunesmith` in the XDG cache folder.

    Raises:
        RecipeError: neither variable is set, and this user has no home folder.
    """
    return _root(CACHE, "XDG_CACHE_HOME", Path(".cache"), Path("tunesmith"))


def registry_root() -> Path:
    """Return the registry folder: $TUNESMITH_REGISTRY, or `tunesmith/registry` in the XDG data folder.

    Raises:
        RecipeError: neither variable is set, and this user has no home folder.
    """
    return _root(REGISTRY, "XDG_DATA_HOME", Path(".local", "share"), Path("tunesmith", "registry"))


def check_writable(*folders: Path, hint: str = FOLDERS_HINT) -> None:
    """Raise RecipeError if this user cannot write to one of these folders. A folder need not exist yet."""
    for folder in folders:
        path = folder.absolute()
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not existing.is_dir():
            problem = "is a file, not a folder" if existing == path else f"is below a file, {existing}"
            raise RecipeError(problem, where=str(folder), code="wrong-path", hint=hint)
        if not os.access(existing, os.W_OK | os.X_OK):
            problem = f"cannot be written by this user (uid {os.getuid()})"
            raise RecipeError(problem, where=str(folder), code="permission", hint=hint)


def is_user_folder(path: Path) -> bool:
    """Return whether `path` is in the cache or the registry, or contains one of them."""
    for root in (cache_root, registry_root):
        with contextlib.suppress(RecipeError, OSError):
            folder, absolute = root().absolute(), path.absolute()
            if absolute.is_relative_to(folder) or folder.is_relative_to(absolute):
                return True
    return False


def _root(variable: str, xdg_variable: str, below_home: Path, name: Path) -> Path:
    if chosen := os.environ.get(variable):
        return Path(os.path.expanduser(chosen))
    xdg = Path(os.environ.get(xdg_variable, ""))
    if xdg.is_absolute():  # the XDG specification ignores relative paths
        return xdg / name
    home = os.path.expanduser("~")  # Path.home() raises RuntimeError for a user without a home folder
    if home in ("~", ""):
        message = f"this user (uid {os.getuid()}) has no home folder, and {variable} is not set"
        raise RecipeError(message, code="no-home", hint=FOLDERS_HINT)
    return Path(home) / below_home / name
