"""The classes of errors, each with the exit code of the command line.

TunesmithError            1   any other error
├── RecipeError           2   the recipe or the command line is wrong
├── DataError             3   the data is wrong
├── VerdictRefused        4   the verdict does not allow promotion
├── DoesNotFit            5   memory or disk
├── DamagedFile           6   a stored file is damaged or has been altered
├── NonFinite             7   training became NaN or infinite
├── NotProved             8   an engine does not give the answers of the model
└── Interrupted          75   stopped in a resumable state (Slurm requeues on it)
    └── ProcessLost      75   ... because another rank exited or hangs
"""


def install_hint(extra: str) -> str:
    """Return the command that installs an extra; tunesmith is not in a package index."""
    return f"in the clone of tunesmith: pip install -e '.[{extra}]'"


class TunesmithError(Exception):
    """An error with its location and a hint.

    Args:
        message: the problem, in one sentence.
        where: the file:line, row, key or step.
        hint: what the user can do about it.
        code: one of `ERROR_CODES` (error_codes.py); by default the code of the class.
    """

    exit_code = 1
    code = "error"

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        self.code = code or type(self).code

    def to_json(self) -> dict[str, str | None]:
        """Return the error for programs: {code, message, where, hint}."""
        return {"code": self.code, "message": self.message, "where": self.where, "hint": self.hint}

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class RecipeError(TunesmithError):
    """The recipe or the command line is wrong."""

    exit_code = 2
    code = "recipe"


class DataError(TunesmithError):
    """The data is unreadable or empty, or does not fit the recipe."""

    exit_code = 3
    code = "data"


class VerdictRefused(TunesmithError):
    """The verdict does not allow promotion."""

    exit_code = 4
    code = "verdict"


class DoesNotFit(TunesmithError):
    """There is too little memory or disk space."""

    exit_code = 5
    code = "does-not-fit"


class DamagedFile(TunesmithError):
    """A stored file is damaged or has been altered since it was written."""

    exit_code = 6
    code = "damaged-file"


class NonFinite(TunesmithError):
    """The loss or a gradient became NaN or infinite; the weights were not updated."""

    exit_code = 7
    code = "non-finite"


class NotProved(TunesmithError):
    """An engine, or an exported file, does not give the answers of the model, within the limits of a proof."""

    exit_code = 8
    code = "not-proved"


class Interrupted(TunesmithError):
    """A run was stopped by Ctrl-C or a signal; the same command resumes it."""

    exit_code = 75
    code = "interrupted"


class ProcessLost(Interrupted):
    """Another rank exited or hangs; the same command resumes from the last checkpoint."""

    code = "process-lost"
