"""Translate exceptions of the system and of libraries into errors with hints."""

import errno
import os
from pathlib import Path

from cyclopts.exceptions import CycloptsError

from tunesmith.cli.usage import usage_error
from tunesmith.core.errors import DataError, DoesNotFit, RecipeError, TunesmithError, install_hint
from tunesmith.core.files import errno_of, out_of_space_error, without_temporary_names
from tunesmith.core.user_folders import FOLDERS_HINT, is_user_folder

_INTERRUPTED = 130
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_WRONG_PATH = {
    errno.EISDIR: "is a folder, but a file is needed",
    errno.ENOTDIR: "is below a file, but a folder is needed",
    errno.EEXIST: "exists already, but is not of the kind needed",
    errno.ENAMETOOLONG: "has a name that is too long for this disk",
    errno.ELOOP: "is a loop of symbolic links",
}
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
_EXTRAS = {
    "bitsandbytes": "qlora", "trackio": "trackio", "mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb",
    "prometheus_client": "serve", "starlette": "serve", "uvicorn": "serve",
}  # fmt: skip


def as_tunesmith_error(error: BaseException) -> TunesmithError | None:
    """Return the error for an exception that the user can understand or fix; None for others, which are bugs."""
    if isinstance(error, TunesmithError):
        return error
    if isinstance(error, CycloptsError):
        return usage_error(error)
    if isinstance(error, KeyboardInterrupt):
        stopped = TunesmithError("stopped by Ctrl-C", code="stopped")
        stopped.exit_code = _INTERRUPTED
        return stopped
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = "`tunesmith plan` shows the memory of a run and how to reduce it"
        return DoesNotFit("memory is full", code="out-of-memory", hint=hint)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("tunesmith"):
        name = error.name.split(".")[0]
        hint = install_hint(_EXTRAS[name]) if name in _EXTRAS else f"reinstall tunesmith, or: pip install {name}"
        return RecipeError(f"the Python package `{name}` is not installed", code="missing-package", hint=hint)
    if isinstance(error, UnicodeError):
        return DataError(f"a text cannot be read or written: {error}", code="encoding", hint="save files as UTF-8")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return RecipeError("a path contains a NUL character", code="wrong-path")
    number = errno_of(error)
    return _system_error(error, number) if number is not None else None


def _system_error(error: BaseException, number: int) -> TunesmithError | None:
    """Return the error for an errno; None if it has no explanation."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)  # the target, if a rename failed
    where = without_temporary_names(os.fsdecode(name)) if isinstance(name, str | bytes | Path) else None
    if disk_full := out_of_space_error(number, Path(where or ".")):
        return disk_full
    if number in _NO_PERMISSION:
        problem = "is on a read-only disk" if number == errno.EROFS else "may not be read or written by this user"
        is_ours = where is not None and is_user_folder(Path(where))
        hint = FOLDERS_HINT if is_ours else "change its permissions, or give another path"
        return RecipeError(problem if where else f"a file {problem}", where=where, code="permission", hint=hint)
    if number == errno.ENOENT and where:
        missing = None if Path(where).parent.exists() else "its folder does not exist either"
        return RecipeError("does not exist", where=where, code="not-found", hint=missing)
    if number in _WRONG_PATH:
        return RecipeError(_WRONG_PATH[number], where=where, code="wrong-path")
    if number == errno.ENOMEM:
        return DoesNotFit("memory is full", where=where, code="out-of-memory")
    if number in _TOO_MANY_FILES:
        hint = "raise the limit: ulimit -n 4096"
        return TunesmithError("too many files are open", where=where, code="open-files", hint=hint)
    if isinstance(error, OSError) and error.strerror:
        return TunesmithError(f"the system reports: {error.strerror}", where=where)
    return None
