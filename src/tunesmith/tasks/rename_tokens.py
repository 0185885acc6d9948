"""Rename the control tokens of a tokenizer, so that it encodes their usual names as plain text."""

import json
from collections.abc import Mapping
from typing import Any


def rename_tokens(backend: Any, names: Mapping[int, str]) -> Any:
    """Return a copy of a tokenizer with new names for some of its added tokens, given by id.

    The tokens are renamed instead of removed, because the ids of added tokens follow from their order.

    Raises:
        ValueError: the ids of the added tokens would change.
    """
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        if token["id"] in names:
            token |= {"content": names[token["id"]], "normalized": False, "single_word": False}
    # Many of them are in the model's vocabulary as well, where some models would match them in text.
    model = state["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(i, text), score] for i, (text, score) in enumerate(model["vocab"])]
    else:
        new_names = {text: names[i] for text, i in model["vocab"].items() if i in names}
        model["vocab"] = {new_names.get(text, text): i for text, i in model["vocab"].items()}
        if model.get("unk_token") in new_names:
            model["unk_token"] = new_names[model["unk_token"]]
        if "merges" in model:
            merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
            model["merges"] = [merge for merge in merges if new_names.keys().isdisjoint([*merge, "".join(merge)])]
    renamed = Tokenizer.from_str(json.dumps(state))
    if any(renamed.token_to_id(token["content"]) != token["id"] for token in state["added_tokens"]):
        raise ValueError("the ids of its added tokens do not follow from their order")
    return renamed
