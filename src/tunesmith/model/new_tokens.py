"""Embedding rows for tokens that the base does not have: add, initialize and train only these rows."""

from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.architecture.base_model import output_bias_error


@torch.no_grad()
def init_new_rows(model: Any, ids: Sequence[int]) -> None:
    """Set the rows of new tokens, in the embedding and the output layer, to the mean of all rows before them.

    This way no new token is more likely than all known ones (Hewitt 2021, "Initializing new word embeddings for
    pretrained language models"). Rows of zeros would be, whenever all logits are negative.

    Args:
        ids: the new tokens, which follow all known ones; the model is resized if it has no rows for them.
    """
    if not ids:
        return
    resize_embeddings(model, ids)
    for weight in _layers(model).values():
        weight[list(ids)] = weight[: min(ids)].double().mean(0).to(weight.dtype)


@torch.no_grad()
def resize_embeddings(model: Any, ids: Sequence[int]) -> None:
    """Add rows up to the last of these tokens, each the mean of the existing rows."""
    rows = model.get_input_embeddings().weight.shape[0]
    if not ids or max(ids) < rows:
        return
    model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    init_new_rows(model, range(rows, max(ids) + 1))


def trainable_token_indices(model: Any, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """Return peft's `trainable_token_indices`, {module: new tokens}, or None without new tokens.

    Raises:
        RecipeError: the output layer has a bias, which peft would ignore.
    """
    if not ids:
        return None
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise output_bias_error()
    return {name: list(ids) for name in _layers(model)}


def _layers(model: Any) -> dict[str, torch.Tensor]:
    """Return {module name: weight [tokens, hidden]} of embedding and output layer; only the first if they are tied."""
    names = {id(module): name for name, module in model.named_modules()}
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    untied = [first] if first.weight is last.weight else [first, last]
    return {names[id(module)]: module.weight for module in untied}
