"""Several adapters on one base, whose weights are loaded once; the active adapter can be switched."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer

from tunesmith.core.errors import RecipeError
from tunesmith.estimate.hardware import PrecisionSetting
from tunesmith.fetch.adapter_tokens import trained_token_ids
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.model.adapters import attach_adapter, open_model
from tunesmith.model.load import choose_compute, without_adapter
from tunesmith.model.lora import AdapterRows, is_plain_adapter, use_compute_dtype
from tunesmith.model.new_tokens import resize_embeddings
from tunesmith.model.quantization import trained_quantization

# The logits of this number of tokens show whether adapters can share a batch. The allowed difference is relative to the
# standard deviation of the logits: rounding only.
_CHECKED_TOKENS = 5
_TOLERANCE, _LOW_PRECISION_TOLERANCE = 1e-3, 0.1


@dataclass(slots=True)
class _Attached:
    """An adapter of the model.

    Attributes:
        folder: its folder; for a combination, that of its first part.
        peft_name: its name in peft, which searches for adapter names in module names; no module has this one.
        vocabulary: the number of tokens that it knows.
        is_mixable: whether it can share a batch with others.
    """

    folder: ModelFolder
    peft_name: str
    vocabulary: int
    is_mixable: bool


class AdapterSet:
    """Named adapters on the base that all of them were trained on.

    Args:
        references: {name: `run:FOLDER`, `NAME@ALIAS` or an adapter's folder}; the first one is active.
        precision: the precision to compute in, as in a recipe.
        base: the base, which is only needed without adapters.

    Raises:
        RecipeError: a reference is not an adapter, or the adapters were trained on different bases or quantizations.
    """

    def __init__(
        self,
        references: Mapping[str, str | ModelFolder],
        *,
        precision: PrecisionSetting = "auto",
        base: ModelFolder | None = None,
    ) -> None:
        folders = {name: resolve(each) if isinstance(each, str) else each for name, each in references.items()}
        first = next(iter(folders.values()), None)
        self._base = base or (first and first.base)
        self._quantization = trained_quantization(first) if first else None
        if first is None and base is None:
            raise RecipeError("no adapters given", hint="pass {name: reference}", code="no-such-adapter")
        for name, folder in folders.items():
            self._require_base(name, folder)
        assert self._base is not None
        self.compute = choose_compute(precision, quantized=self._quantization is not None)
        self.model: Any = open_model(self._base, self.compute, merged=True, quantization=self._quantization).eval()
        self._base_rows = self._embedding_rows
        for folder in folders.values():
            resize_embeddings(self.model, trained_token_ids(folder.path))
        self._adapters: dict[str, _Attached] = {}
        self._numbers = count()
        self._rows = AdapterRows()
        self._selected: str | None = None  # the adapter that is active for all rows
        for name, folder in folders.items():
            self._attach(name, folder)
        if folders:
            self.use(next(iter(folders)))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they were added."""
        return tuple(self._adapters)

    @property
    def active(self) -> str:
        """The name of the active adapter."""
        return next(name for name, each in self._adapters.items() if each.peft_name == self.model.active_adapter)

    def folder(self, name: str) -> ModelFolder:
        """Return the folder of an adapter; for a combination, that of its first part."""
        return self._known(name).folder

    def use(self, name: str) -> Any:
        """Make an adapter the active one, and return the model."""
        self._known(name)
        self._activate(name)
        return self.model

    def add(self, name: str, folder: ModelFolder) -> None:
        """Add an adapter; the active one stays active.

        Raises:
            RecipeError: the adapter was trained on another base or quantization, the name is in use, or the adapter
                adds tokens that the model was not opened with.
        """
        self._require_base(name, folder)
        if name in self._adapters:
            raise RecipeError(f"there is already an adapter `{name}`", where=name, code="no-such-adapter")
        if max(trained_token_ids(folder.path), default=-1) >= self._embedding_rows:
            message = f"`{folder.reference}` adds tokens, for which the opened model has no embedding rows"
            raise RecipeError(message, where=name, hint="open it together with the others", code="different-bases")
        self._attach(name, folder)

    def remove(self, name: str) -> None:
        """Remove an adapter and its weights. If it is the active one, the base becomes active."""
        peft_name = self._known(name).peft_name
        if self._selected == name:
            self._activate(None)
        del self._adapters[name]
        if not self._adapters:
            self.model = self.model.unload()  # peft needs one adapter at least
            return
        if self.model.active_adapter == peft_name:  # peft would choose another one with a warning
            self.model.set_adapter(next(iter(self._adapters.values())).peft_name)
            self.model.requires_grad_(False)
        self.model.delete_adapter(peft_name)

    def vocabulary(self, name: str | None) -> int:
        """Return the number of tokens that an adapter knows, or the base (None): others have added the rest."""
        return self._base_rows if name is None else self._known(name).vocabulary

    def group(self, name: str | None) -> str | None:
        """Return None for the base and for adapters that can share a batch, else the adapter, which needs its own.

        Low-rank updates of linear layers can be applied row by row. DoRA, trained token rows, and updates of
        embeddings and of experts cannot.
        """
        return None if name is None or self._known(name).is_mixable else name

    @contextmanager
    def select(self, names: Sequence[str | None]) -> Iterator[None]:
        """Apply to each row of a batch its own adapter; None is the base.

        Args:
            names: the adapter of each row. All must be of one group.
        """
        [group] = {self.group(name) for name in names}
        self._activate(group)
        if group is not None:
            yield
            return
        peft_names = [name and self._adapters[name].peft_name for name in names]
        with self._rows.select(peft_names, self.compute.device):
            yield

    @contextmanager
    def base(self) -> Iterator[Any]:
        """Yield the model with all adapters disabled; the active one is enabled again at the end."""
        before = self._selected
        self._activate(None)
        try:
            yield self.model
        finally:
            self._activate(before)

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
        if name in self._adapters or not weights:
            raise _cannot_combine(f"there is already an adapter `{name}`" if weights else "no adapters to combine")
        parts = [self._known(part).peft_name for part in weights]
        for part, peft_name in zip(weights, parts, strict=True):
            config = self.model.peft_config[peft_name]
            if getattr(config, "use_dora", False) or getattr(config, "trainable_token_indices", None):
                message = f"`{part}` has more than low-rank updates, which cannot be summed"
                raise _cannot_combine(message, "adapters with DoRA or with new tokens cannot be combined")
        peft_name, active = self._new_peft_name(), self.active
        try:
            self.model.add_weighted_adapter(parts, list(weights.values()), peft_name, combination_type=method)
        except ValueError as error:
            raise _cannot_combine(f"the adapters cannot be combined: {error}", "try method cat") from error
        folder = self.folder(next(iter(weights)))
        self._adapters[name] = _Attached(folder, peft_name, vocabulary=self._base_rows, is_mixable=True)
        self._selected = None
        self.use(active)

    @property
    def _embedding_rows(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    def _new_peft_name(self) -> str:
        return f"adapter-{next(self._numbers)}"

    def _attach(self, name: str, folder: ModelFolder) -> None:
        peft_name = self._new_peft_name()
        self.model = attach_adapter(self.model, folder.path, name=peft_name).eval()
        self.model.requires_grad_(False)
        self._rows = use_compute_dtype(self.model)
        vocabulary = max([self._base_rows, *(token + 1 for token in trained_token_ids(folder.path))])
        adapter = _Attached(folder, peft_name, vocabulary, is_mixable=_is_plain(self.model, peft_name))
        self._adapters[name] = adapter
        # peft activates the first adapter.
        selected, self._selected = self._selected, name
        self._activate(selected)
        adapter.is_mixable = adapter.is_mixable and self._is_equal_by_row(name)

    @torch.inference_mode()
    def _is_equal_by_row(self, name: str) -> bool:
        """Return whether an adapter and the base in one batch have the logits that each has alone.

        They do not if a layer gets its input in another order than row by row, such as the tokens of an expert.
        """
        model, before = without_adapter(self.model), self._selected
        if model.config.is_encoder_decoder:
            return False
        ids = torch.arange(3 * _CHECKED_TOKENS, device=self.compute.device).view(3, -1) % self._base_rows
        with self.select([name, None, name]):
            mixed = model(input_ids=ids, use_cache=False).logits.float()
        alone = torch.empty_like(mixed)
        for adapter, rows in ((name, [0, 2]), (None, [1])):
            self._activate(adapter)
            alone[rows] = model(input_ids=ids, use_cache=False).logits.float()[rows]
        self._activate(before)
        exact = self.compute.dtype == torch.float32 and self._quantization is None
        return bool((mixed - alone).std() <= alone.std() * (_TOLERANCE if exact else _LOW_PRECISION_TOLERANCE))

    def _activate(self, name: str | None) -> None:
        """Let one adapter apply to all rows, or none."""
        if name == self._selected:
            return
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(self._adapters[name].peft_name)
            self.model.requires_grad_(False)
        self._selected = name

    def _require_base(self, name: str, folder: ModelFolder) -> None:
        """Raise RecipeError unless an adapter was trained on the base and the quantization of this set."""
        if folder.base is None:
            message = f"`{folder.reference}` is not an adapter but a full model"
            raise RecipeError(message, where=name, code="not-an-adapter")
        assert self._base is not None
        if folder.base.digest() != self._base.digest():
            message = f"`{folder.reference}` was trained on another base ({folder.base.reference})"
            hint = f"the base of this set is {self._base.reference}; all adapters must have the same base"
            raise RecipeError(message, where=name, hint=hint, code="different-bases")
        quantizations = [str(each or "no quantization") for each in (trained_quantization(folder), self._quantization)]
        if quantizations[0] != quantizations[1]:
            message = f"was trained with {quantizations[0]}, but the base of this set has {quantizations[1]}"
            hint = "all adapters must have the same quantization of the base"
            raise RecipeError(message, where=name, hint=hint, code="different-bases")

    def _known(self, name: str) -> _Attached:
        """Return the adapter of a name; raise RecipeError if there is none."""
        if name not in self._adapters:
            hint = f"use one of {', '.join(self._adapters)}"
            raise RecipeError(f"there is no adapter `{name}`", hint=hint, code="no-such-adapter")
        return self._adapters[name]


def _is_plain(model: Any, peft_name: str) -> bool:
    """Return whether an adapter only has low-rank updates of linear layers, with our forward pass."""
    config = model.peft_config[peft_name]
    if config.modules_to_save or getattr(config, "trainable_token_indices", None):
        return False
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    with_adapter = [layer for layer in layers if peft_name in {*layer.lora_A, *layer.lora_embedding_A}]
    return all(is_plain_adapter(layer, peft_name) for layer in with_adapter)


def _cannot_combine(message: str, hint: str | None = None) -> RecipeError:
    return RecipeError(message, where="combine", hint=hint, code="cannot-combine")
