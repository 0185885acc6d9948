"""The names under which models are served: NAME@ALIAS and NAME@3 of the registry, or a name that the user chose."""

import re
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.registry.names import parse_reference
from tunesmith.registry.store import looks_like_reference

# Names are parts of URLs, of JSON and of labels in metrics.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._/:-]{0,127}")
_ARGUMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Served:
    """One model of the command line.

    Attributes:
        reference: the model, such as NAME@ALIAS, a run or a folder.
        name: the name that clients use.
    """

    reference: str
    name: str

    @classmethod
    def parse(cls, argument: str) -> "Served":
        """Return the model of `REFERENCE` or `NAME=REFERENCE`.

        Without a name, a reference to the registry or the hub is its own name; a path is called by its last part,
        because clients should not learn where it is.

        Raises:
            RecipeError: the name cannot be part of a URL.
        """
        match = _ARGUMENT.fullmatch(argument)
        if match and not Path(argument).exists():
            return cls(match[2], match[1])
        name = argument.removeprefix("pypi:")
        is_path = argument.startswith(("run:", ".", "/", "~")) or Path(name).exists() or argument.endswith(".gguf")
        if is_path:
            name = Path(name.removeprefix("run:").partition("#")[0]).absolute().name.removesuffix(".gguf")
        if not argument or not _NAME.fullmatch(name):
            hint = "give it one: tunesmith serve NAME=MODEL"
            raise RecipeError(f"`{name}` cannot be the name of a served model", code="bad-name", hint=hint)
        return cls(argument, name)

    @property
    def alias(self) -> tuple[str, str] | None:
        """(model, alias) if the reference is an alias of the registry, which can move; None for all others."""
        if Path(self.reference).exists() or not looks_like_reference(self.reference):
            return None
        model, target = parse_reference(self.reference)
        return (model, target) if isinstance(target, str) else None


def version_of(folder: ModelFolder) -> str | None:
    """Return the version NAME@3 of a model from the registry; None for other models."""
    return folder.pin.at if folder.pin is not None and folder.pin.kind == "registry" else None


def base_name(folder: ModelFolder) -> str:
    """Return the name of the base below all adapters, without the path of a folder."""
    adapter = folder
    while adapter.base is not None and adapter.base.base is not None:
        adapter = adapter.base
    recorded = adapter.card.get("base") if adapter.base is not None else None
    return Served.parse(str(recorded or folder.root.reference)).name


def require_distinct(models: list[Served]) -> None:
    """Raise RecipeError if two models have the same name."""
    names = [served.name for served in models]
    for name in names:
        if names.count(name) > 1:
            hint = "give each its own: tunesmith serve NAME=MODEL OTHER=MODEL"
            raise RecipeError(f"two models are called `{name}`", code="bad-name", hint=hint)


def base_of(models: list[Served]) -> Served:
    """Return the base of some models, under its own name; raise RecipeError if they have several or none."""
    folders = [resolve(served.reference, weights=False) for served in models]
    roots = {str(folder.root.path): folder.root for folder in folders if folder.base is not None}
    if len(roots) != 1:
        problem = "the models have several bases" if roots else "none of the models is an adapter, which has a base"
        hint = "serve the base by its own reference, as one of the models"
        raise RecipeError(f"--base: {problem}", code="no-effect", hint=hint)
    [root] = roots.values()
    name = next(base_name(folder) for folder in folders if folder.base is not None)
    return Served(str(root.pin) if root.pin is not None else str(root.path), name)
