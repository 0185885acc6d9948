"""Many adapters, one base: the base's weights are held once, and which adapter answers is switched."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from tunesmith.core.errors import RecipeError
from tunesmith.estimate.hardware import PrecisionSetting
from tunesmith.fetch.adapter_tokens import trained_token_ids
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.model.adapters import attach_adapter, open_model
from tunesmith.model.load import choose_compute
from tunesmith.model.new_tokens import resize_embeddings
from tunesmith.model.quantization import trained_quantization


class AdapterSet:
    """Adapters by the names that you give them, on the one base that all of them were trained on.

    Args:
        references: {name: `run:FOLDER`, `NAME@ALIAS` or an adapter's folder}; the first one is in use.
        precision: what matrices are multiplied in, as in a recipe.

    Raises:
        RecipeError: a reference is no adapter, or they were not trained on the same base in the same form.
    """

    def __init__(self, references: Mapping[str, str], *, precision: PrecisionSetting = "auto") -> None:
        if not references:
            raise RecipeError("no adapter is named", hint="give {name: reference}")
        self._folders = {name: resolve(reference) for name, reference in references.items()}
        base = _common_base(self._folders)
        quantization = trained_quantization(next(iter(self._folders.values())))
        compute = choose_compute(precision, quantized=quantization is not None)
        # peft looks for adapters' names inside those of modules, so it gets names that no module has.
        self._inner = {name: f"adapter-{number}" for number, name in enumerate(self._folders)}
        model = open_model(base, compute, merged=True, quantization=quantization)
        for folder in self._folders.values():
            resize_embeddings(model, trained_token_ids(folder.path))
        for name, folder in self._folders.items():
            model = attach_adapter(model, folder.path, name=self._inner[name])
        self.model: Any = model.eval()
        self.use(next(iter(self._folders)))

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order in which they came."""
        return tuple(self._inner)

    @property
    def active(self) -> str:
        """The adapter in use."""
        return next(name for name, inner in self._inner.items() if inner == self.model.active_adapter)

    def folder(self, name: str) -> ModelFolder:
        """Return where an adapter is; of a combination, where the first of its parts is."""
        return self._folders[self._known(name)]

    def use(self, name: str) -> Any:
        """Put an adapter to use, and return the model."""
        self.model.set_adapter(self._inner[self._known(name)])
        self.model.requires_grad_(False)
        return self.model

    @contextmanager
    def base(self) -> Iterator[Any]:
        """Give the model with no adapter in use; on leaving, the one before is in use again."""
        with self.model.disable_adapter():
            yield self.model
        self.model.requires_grad_(False)

    def combine(
        self, name: str, weights: Mapping[str, float], *, method: Literal["cat", "linear", "svd"] = "cat"
    ) -> None:
        """Add an adapter that is the weighted sum of others, by peft's `add_weighted_adapter`.

        Args:
            name: what the sum is called.
            weights: {adapter: its weight}; weights may be negative.
            method: `cat` is the sum itself, with a rank of all ranks together; `svd` is the nearest one of the largest
                rank among them; `linear` adds the matrices A and B apart, which is cheap and only near.

        Raises:
            RecipeError: the adapters cannot be added, or the name is taken.
        """
        if name in self._inner or not weights:
            raise RecipeError(f"`{name}` is there already" if weights else "nothing to combine", where="combine")
        parts = [self._inner[self._known(part)] for part in weights]
        for part, inner in zip(weights, parts, strict=True):
            config = self.model.peft_config[inner]
            if getattr(config, "use_dora", False) or getattr(config, "trainable_token_indices", None):
                raise RecipeError(
                    f"`{part}` trained more than low-rank updates, which cannot be added",
                    where="combine",
                    hint="DoRA's lengths and rows of new tokens have no sum",
                )
        inner, active = f"adapter-{len(self._inner)}", self.active
        try:
            self.model.add_weighted_adapter(parts, list(weights.values()), inner, combination_type=method)
        except ValueError as error:
            raise RecipeError(f"cannot be combined: {error}", where="combine", hint="try method cat") from error
        self._inner[name], self._folders[name] = inner, self._folders[next(iter(weights))]
        self.use(active)

    def _known(self, name: str) -> str:
        if name not in self._inner:
            raise RecipeError(f"there is no adapter `{name}`", hint=f"there are {', '.join(self._inner)}")
        return name


def _common_base(folders: Mapping[str, ModelFolder]) -> ModelFolder:
    """Return the base of all adapters; raise RecipeError unless it is one, kept in one form."""
    first, found = next(iter(folders.items()))
    for name, folder in folders.items():
        if folder.base is None or found.base is None:
            raise RecipeError(f"`{folder.reference}` is no adapter but a whole model", where=name)
        if folder.base.digest() != found.base.digest():
            raise RecipeError(
                f"`{folder.reference}` was trained on another base ({folder.base.reference})",
                where=name,
                hint=f"`{first}` was trained on {found.base.reference}; one base can hold only its own adapters",
            )
        kept = [trained_quantization(one) for one in (folder, found)]
        if kept[0] != kept[1]:
            forms = [str(one or "whole weights") for one in kept]
            raise RecipeError(f"was trained beside {forms[0]}, and `{first}` beside {forms[1]}", where=name)
    assert found.base is not None
    return found.base
