"""Pins: the location of a model, as cards and runs record it to find the model again after a move."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["pypi", "registry", "hub", "folder", "gguf", "run"]


@dataclass(frozen=True, slots=True)
class Pin:
    """The location and the version of a model.

    Paths are never parsed, so `#`, `@` and `::` in them have no special meaning.

    Attributes:
        kind: the kind of `at`.
        at: the package, `NAME@3` of the registry, `org/name` of the hub, or the path of a folder, file or run.
        version: the commit on the hub, or the step of a run's checkpoint.
    """

    kind: Kind
    at: str
    version: str | None = None

    @property
    def is_path(self) -> bool:
        """Whether `at` is a path on this machine."""
        return self.kind in ("folder", "gguf", "run")

    def __str__(self) -> str:
        if self.kind == "hub":
            return f"{self.at}@{self.version}" if self.version else self.at
        if self.kind == "run":
            return f"run:{self.at}" + (f"#{self.version}" if self.version else "")
        return f"pypi:{self.at}" if self.kind == "pypi" else self.at

    def relative_to_folder(self, folder: Path) -> "Pin":
        """Return the pin with its path relative to `folder`; a pin without a path is unchanged."""
        if not self.is_path:
            return self
        return replace(self, at=os.path.relpath(os.path.realpath(self.at), os.path.realpath(folder)))

    def absolute_in(self, folder: Path) -> "Pin":
        """Return the pin with its path made absolute; relative paths start at `folder`."""
        if not self.is_path:
            return self
        return replace(self, at=os.path.normpath(os.path.join(os.path.realpath(folder), os.path.expanduser(self.at))))

    def to_json(self) -> dict[str, Any]:
        """Return the pin as JSON: the arguments of `Pin`."""
        return asdict(self)


def pin_to_store(folder: Path, pin: Pin, typed: str) -> Pin:
    """Return the pin to store in `folder`: with an absolute path if the user typed one, else relative to `folder`.

    Args:
        typed: the reference as the user typed it.
    """
    path = typed.removeprefix("run:") if pin.kind == "run" else typed
    if pin.is_path and os.path.isabs(os.path.expanduser(path)):
        return replace(pin, at=path.removesuffix(f"#{pin.version}") if pin.kind == "run" else path)
    return pin.relative_to_folder(folder)
