"""Publish an exported folder on the hub: one commit in one repository, which is private if it is new.

Large files are uploaded first and become visible only with the commit, so an interrupted publication leaves the
repository as it was. The same command then uploads what is missing. The token is huggingface_hub's (`hf auth login` or
HF_TOKEN); it is neither read nor stored here.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.files import is_temporary
from tunesmith.core.progress import log
from tunesmith.report.unit import NONE

_TAG = "tunesmith"
_OWN_FILE = ".gitattributes"  # which the hub adds to a new repository
_LOGIN = "run `hf auth login` with a token that may write, or set HF_TOKEN"
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICTS = 401, 403, 404, (409, 412)
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Published:
    """A published export: the address of its commit, and its files as {name: bytes}."""

    url: str
    files: dict[str, int]


def _files_to_publish(folder: Path) -> dict[str, int]:
    """Return {name: bytes} of the files of an exported folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not is_temporary(path))
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def check_repository(repository: str, *, endpoint: str | None = None) -> str | None:
    """Check that a repository can be published to, before an export is built for it; return its current commit.

    Returns:
        None if the repository does not exist yet.

    Raises:
        RecipeError: the name is wrong, there is no token or it may not write, or the repository has files of others.
        TunesmithError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RecipeError(str(error).splitlines()[0], where=repository, hint="use ORG/NAME", code="bad-name") from None
    if repository.count("/") != 1:
        raise RecipeError("names no owner", where=repository, hint="use ORG/NAME", code="bad-name")
    api = HfApi(endpoint=endpoint)
    with _hub_errors(repository):
        api.whoami()
        try:
            info = api.model_info(repository)
        except RepositoryNotFoundError:
            return None
    names = {file.rfilename for file in info.siblings or ()} - {_OWN_FILE}
    if names and _TAG not in (info.tags or ()):
        message = f"has {len(names)} files that tunesmith did not publish, such as {min(names)}"
        raise RecipeError(message, where=repository, hint="name another repository", code="exists")
    return info.sha


def publish(folder: Path, repository: str, *, message: str, endpoint: str | None = None) -> Published:
    """Upload a folder to a repository in one commit, and remove what an earlier export left there.

    A new repository is private; an existing one stays as it is.

    Args:
        message: the message of the commit.
        endpoint: the hub; by default HF_ENDPOINT or the public one.

    Raises:
        RecipeError: as in `check_repository`, or the repository was changed meanwhile.
        TunesmithError: the hub cannot be reached; the same command resumes.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    head, files = check_repository(repository, endpoint=endpoint), _files_to_publish(folder)
    log(f"hub: uploading {len(files)} files ({sum(files.values()) / _GIB:.2f} GiB) to {repository}")
    api = HfApi(endpoint=endpoint)
    with _hub_errors(repository):
        if head is None:
            api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, parent_commit=head, delete_patterns="*"
        )
    return Published(str(commit.commit_url), files)


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Translate errors of the hub; none of them contains the token."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    # The base class of its HTTP client's errors, whichever client this version uses.
    connection_errors = (getattr(errors, "HTTPError", OSError), OSError, RuntimeError)  # RuntimeError is hf_xet's

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise RecipeError("there is no token for the hub", where=repository, hint=_LOGIN, code="hub-token") from error
    except OfflineModeIsEnabled as error:
        hint = "unset HF_HUB_OFFLINE to publish, or export with --dry-run"
        raise RecipeError("HF_HUB_OFFLINE=1 is set", where=repository, hint=hint, code="hub-unreachable") from error
    except HfHubHTTPError as error:
        raise _refused(error, repository) from error
    except ValueError as error:  # the hub checks the metadata of the card before a commit
        message = f"the hub refuses the files: {' '.join(str(error).split())}; nothing was published"
        raise TunesmithError(message, where=repository, code="hub-refused") from error
    except connection_errors as error:
        hint = "check the network, the proxy and HF_ENDPOINT; the same command resumes"
        message = f"the hub cannot be reached: {type(error).__name__}"
        raise TunesmithError(message, where=repository, hint=hint, code="hub-unreachable") from error


def _refused(error: Any, repository: str) -> TunesmithError:
    status = getattr(error.response, "status_code", None)
    if status == _UNAUTHORIZED:
        return RecipeError("the hub does not accept the token", where=repository, hint=_LOGIN, code="hub-token")
    owner = repository.partition("/")[0]
    if status in (_FORBIDDEN, _NOT_FOUND):
        message = f"the token may not write to repositories of `{owner}`"
        hint = f"use a token with write access to `{owner}`, or name another owner"
        return RecipeError(message, where=repository, hint=hint, code="hub-forbidden")
    if status in _CONFLICTS:
        message = "the repository was changed meanwhile; nothing was published"
        return RecipeError(message, where=repository, hint="repeat the command", code="hub-conflict")
    message = f"the hub answers with status {status or NONE}; nothing was published"
    hint = "repeat the command later; it resumes"
    return TunesmithError(message, where=repository, hint=hint, code="hub-unreachable")
