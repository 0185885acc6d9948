"""A tokenizer whose control tokens bear other names, so that what they are called is only letters to it."""

import json
from collections.abc import Mapping
from typing import Any


def rename_tokens(backend: Any, names: Mapping[int, str]) -> Any:
    """Return the same tokenizer with other names for some of its added tokens, by their ids.

    They are renamed rather than removed, as the ids of added tokens follow from how many come before them.

    Raises:
        ValueError: the ids of the added tokens would not stay as they are.
    """
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        if token["id"] in names:
            token |= {"content": names[token["id"]], "normalized": False, "single_word": False}
    # The model knows many of them too, and some models would find them in a text by themselves.
    model = state["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(i, text), score] for i, (text, score) in enumerate(model["vocab"])]
    else:
        old = {text: names[i] for text, i in model["vocab"].items() if i in names}
        model["vocab"] = {old.get(text, text): i for text, i in model["vocab"].items()}
        if model.get("unk_token") in old:
            model["unk_token"] = old[model["unk_token"]]
        if "merges" in model:
            merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
            model["merges"] = [merge for merge in merges if old.keys().isdisjoint([*merge, "".join(merge)])]
    made = Tokenizer.from_str(json.dumps(state))
    if any(made.token_to_id(token["content"]) != token["id"] for token in state["added_tokens"]):
        raise ValueError("the added tokens have ids that do not follow from their order")
    return made
