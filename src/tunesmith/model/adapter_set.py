"""Several adapters on one base, whose weights are loaded once; the active adapter can be switched."""

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
    """Named adapters on the base that all of them were trained on.

    Args:
        references: {name: `run:FOLDER`, `NAME@ALIAS` or an adapter's folder}; the first one is active.
        precision: the precision to compute in, as in a recipe.

    Raises:
        RecipeError: a reference is not an adapter, or the adapters were trained on different bases or quantizations.
    """

    def __init__(self, references: Mapping[str, str], *, precision: PrecisionSetting = "auto") -> None:
        if not references:
            raise RecipeError("no adapters given", hint="pass {name: reference}", code="no-such-adapter")
        self._folders = {name: resolve(reference) for name, reference in references.items()}
        base = _common_base(self._folders)
        quantization = trained_quantization(next(iter(self._folders.values())))
        compute = choose_compute(precision, quantized=quantization is not None)
        # peft searches for adapter names in module names, so it gets names that no module has.
        self._peft_names = {name: f"adapter-{number}" for number, name in enumerate(self._folders)}
        model = open_model(base, compute, merged=True, quantization=quantization)
        for folder in self._folders.values():
            resize_embeddings(model, trained_token_ids(folder.path))
        for name, folder in self._folders.items():
            model = attach_adapter(model, folder.path, name=self._peft_names[name])
        self.model: Any = model.eval()
        self.use(next(iter(self._folders)))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they were added."""
        return tuple(self._peft_names)

    @property
    def active(self) -> str:
        """The name of the active adapter."""
        return next(name for name, peft_name in self._peft_names.items() if peft_name == self.model.active_adapter)

    def folder(self, name: str) -> ModelFolder:
        """Return the folder of an adapter; for a combination, that of its first part."""
        return self._folders[self._require_known(name)]

    def use(self, name: str) -> Any:
        """Make an adapter the active one, and return the model."""
        self.model.set_adapter(self._peft_names[self._require_known(name)])
        self.model.requires_grad_(False)
        return self.model

    @contextmanager
    def base(self) -> Iterator[Any]:
        """Yield the model with all adapters disabled; the active one is enabled again at the end."""
        with self.model.disable_adapter():
            yield self.model
        self.model.requires_grad_(False)

    def combine(
        self, name: str, weights: Mapping[str, float], *, method: Literal["cat", "linear", "svd"] = "cat"
    ) -> None:
        """Add an adapter that is the weighted sum of others, with peft's `add_weighted_adapter`.

        Args:
            name: the name of the new adapter.
            weights: {adapter: weight}; weights may be negative.
            method: `cat` is the exact sum, whose rank is the sum of all ranks; `svd` approximates it with the largest
                rank among them; `linear` adds the matrices A and B separately, which is cheap but inexact.

        Raises:
            RecipeError: the adapters cannot be combined, or the name is in use.
        """
        if name in self._peft_names or not weights:
            raise _cannot_combine(f"there is already an adapter `{name}`" if weights else "no adapters to combine")
        parts = [self._peft_names[self._require_known(part)] for part in weights]
        for part, peft_name in zip(weights, parts, strict=True):
            config = self.model.peft_config[peft_name]
            if getattr(config, "use_dora", False) or getattr(config, "trainable_token_indices", None):
                message = f"`{part}` has more than low-rank updates, which cannot be summed"
                raise _cannot_combine(message, "adapters with DoRA or with new tokens cannot be combined")
        peft_name, active = f"adapter-{len(self._peft_names)}", self.active
        try:
            self.model.add_weighted_adapter(parts, list(weights.values()), peft_name, combination_type=method)
        except ValueError as error:
            raise _cannot_combine(f"the adapters cannot be combined: {error}", "try method cat") from error
        self._peft_names[name], self._folders[name] = peft_name, self._folders[next(iter(weights))]
        self.use(active)

    def _require_known(self, name: str) -> str:
        if name not in self._peft_names:
            hint = f"use one of {', '.join(self._peft_names)}"
            raise RecipeError(f"there is no adapter `{name}`", hint=hint, code="no-such-adapter")
        return name


def _cannot_combine(message: str, hint: str | None = None) -> RecipeError:
    return RecipeError(message, where="combine", hint=hint, code="cannot-combine")


def _common_base(folders: Mapping[str, ModelFolder]) -> ModelFolder:
    """Return the common base of all adapters; raise RecipeError unless they share one base and one quantization."""
    first_name, first = next(iter(folders.items()))
    for name, folder in folders.items():
        if folder.base is None or first.base is None:
            message = f"`{folder.reference}` is not an adapter but a full model"
            raise RecipeError(message, where=name, code="not-an-adapter")
        if folder.base.digest() != first.base.digest():
            message = f"`{folder.reference}` was trained on another base ({folder.base.reference})"
            hint = f"`{first_name}` was trained on {first.base.reference}; all adapters must have the same base"
            raise RecipeError(message, where=name, hint=hint, code="different-bases")
        quantizations = [str(trained_quantization(adapter) or "no quantization") for adapter in (folder, first)]
        if quantizations[0] != quantizations[1]:
            message = f"was trained with {quantizations[0]}, but `{first_name}` with {quantizations[1]}"
            hint = "all adapters must have the same quantization of the base"
            raise RecipeError(message, where=name, hint=hint, code="different-bases")
    assert first.base is not None
    return first.base
