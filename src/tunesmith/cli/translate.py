"""Exceptions of the system and of libraries, translated into errors with a hint for the user."""

import errno
import os
from pathlib import Path

from tunesmith.core.errors import DataError, DoesNotFit, RecipeError, TunesmithError, install_hint
from tunesmith.core.files import errno_of, out_of_space_error, without_temporary_names
from tunesmith.core.user_folders import FOLDERS_HINT, is_user_folder

_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_WRONG_PATH = {
    errno.EISDIR: "is a folder, but a file is needed",
    errno.ENOTDIR: "is below a file, but a folder is needed",
    errno.EEXIST: "exists already, as something of another kind",
    errno.ENAMETOOLONG: "has a name that is too long for this disk",
    errno.ELOOP: "is a loop of symbolic links",
}
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
_EXTRAS = {
    "bitsandbytes": "qlora", "trackio": "trackio", "mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb",
}  # fmt: skip


def as_tunesmith_error(error: Exception) -> TunesmithError | None:
    """Return the error that explains an exception of others to the user; None if it is a fault of the program."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return DoesNotFit("memory is full", hint="see `tunesmith plan` for what the run needs, and how to make it fit")
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("tunesmith"):
        return _missing_package(error.name.split(".")[0])
    if isinstance(error, UnicodeError):
        return DataError(f"text cannot be read or written: {error}", code="encoding", hint="save files as UTF-8")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return RecipeError("a path has a NUL character in it", code="wrong-path")
    number = errno_of(error)
    return _system_error(error, number) if number is not None else None


def _missing_package(name: str) -> TunesmithError:
    return RecipeError(
        f"the Python package `{name}` is not installed",
        code="missing-package",
        hint=install_hint(_EXTRAS[name]) if name in _EXTRAS else "install tunesmith again, or that package",
    )


def _system_error(error: Exception, number: int) -> TunesmithError | None:
    """Return the error for an errno; None if it has no explanation."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)  # the target, if a rename failed
    where = without_temporary_names(os.fsdecode(name)) if isinstance(name, str | bytes | Path) else None
    if full := out_of_space_error(number, Path(where or ".")):
        return full
    if number in _NO_PERMISSION:
        what = "is on a read-only disk" if number == errno.EROFS else "may not be read or written by this user"
        ours = where is not None and is_user_folder(Path(where))
        hint = FOLDERS_HINT if ours else "change its permissions, or name another place"
        return RecipeError(what if where else f"a file {what}", where=where, code="permission", hint=hint)
    if number == errno.ENOENT and where:
        missing = None if Path(where).parent.exists() else "its folder does not exist either"
        return RecipeError("there is no such file or folder", where=where, code="not-found", hint=missing)
    if number in _WRONG_PATH:
        return RecipeError(_WRONG_PATH[number], where=where, code="wrong-path")
    if number == errno.ENOMEM:
        return DoesNotFit("memory is full", where=where)
    if number in _TOO_MANY_FILES:
        return TunesmithError("too many files are open", where=where, hint="raise the limit: ulimit -n 4096")
    if isinstance(error, OSError) and error.strerror:
        return TunesmithError(f"the system reports: {error.strerror}", where=where)
    return None
