"""Embedding rows for tokens that the base does not have: add, initialize and train only these rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tunesmith.architecture.base_model import OUTPUT_BIAS, SHARED_WITH_ENCODER, untrainable_rows


@torch.no_grad()
def init_new_rows(model: Any, new_rows: Mapping[int, Sequence[int]]) -> None:
    """Set the rows of new tokens, in the embedding and the output layer, to the mean of other tokens' rows.

    This way no new token is more likely than all known ones (Hewitt 2021, "Initializing new word embeddings for
    pretrained language models"). Rows of zeros would be, whenever all logits are negative.

    Args:
        new_rows: {new token: tokens whose mean row it gets, or none for the mean of all rows before the new ones}. New
            tokens follow all known ones; the model is resized if it has no rows for them.
    """
    if not new_rows:
        return
    resize_embeddings(model, list(new_rows))
    for weight in _layers(model).values():
        mean = weight[: min(new_rows)].double().mean(0)
        for token, sources in new_rows.items():
            weight[token] = (weight[list(sources)].double().mean(0) if sources else mean).to(weight.dtype)


@torch.no_grad()
def resize_embeddings(model: Any, ids: Sequence[int]) -> None:
    """Add rows up to the last of these tokens, each the mean of the existing rows."""
    rows = model.get_input_embeddings().weight.shape[0]
    if not ids or max(ids) < rows:
        return
    config = model.config
    was_tied, is_tied = config.tie_word_embeddings, len(_layers(model)) == 1
    config.tie_word_embeddings = is_tied  # that of T5 is always true, and transformers would overwrite the output layer
    model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    config.tie_word_embeddings = was_tied
    init_new_rows(model, dict.fromkeys(range(rows, max(ids) + 1), ()))


def trainable_token_indices(model: Any, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """Return peft's `trainable_token_indices`, {module: new tokens}, or None without new tokens.

    Raises:
        RecipeError: peft would not train all of these rows.
    """
    if not ids:
        return None
    layers = _layers(model)
    if model.config.is_encoder_decoder:
        raise untrainable_rows(SHARED_WITH_ENCODER)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise untrainable_rows(OUTPUT_BIAS)
    if len(layers) > 1 and model.config.tie_word_embeddings:
        raise untrainable_rows("its output layer is not tied to the embedding, although its configuration says so")
    return {name: list(ids) for name in layers}


def _layers(model: Any) -> dict[str, torch.Tensor]:
    """Return {module name: weight [tokens, hidden]} of embedding and output layer; only the first if they are tied."""
    names = {id(module): name for name, module in model.named_modules()}
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    untied = [first] if first.weight is last.weight else [first, last]
    return {names[id(module)]: module.weight for module in untied}
