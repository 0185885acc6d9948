"""The short form of a further held-out set that comes with tunesmith: `also: [general]` becomes a complete entry."""

from typing import Any

GENERAL = "general"
MAX_LOSS = 0.1
"""The rise of the loss that `general` allows by default, in nats; docs/forgetting.md has the measurements behind it."""

_TURNS = {"prompt": "{prompt}", "response": "{response}"}
_TEMPLATES: dict[str, dict[str, str]] = {
    "chat": _TURNS,
    "seq2seq": _TURNS,
    "completion": _TURNS,
    "text": {"text": "{text}"},
}
_DEFAULTS = {
    "name": GENERAL,
    "metrics": ["loss", "token_accuracy"],
    "rows": 1000,  # all of them
    "max_drop": MAX_LOSS,
    "max_tokens_per_example": 512,  # so that a model with few positions only loses the longest rows
    # Without a chat template a row is one document, and a tokenizer without some characters cannot write every row.
    "max_dropped_fraction": 0.5,
}


def complete_general_sets(recipe: Any) -> Any:
    """Return the values of a recipe with complete entries in `evaluate.also` for the set that comes with tunesmith.

    An entry is `general`, or a section whose source is `{embedded: general}`; keys that it has are kept. The rows are
    rendered as those of `data`: as turns of a chat, as source and target, or as documents.
    """
    match recipe:
        case {"evaluate": {"also": [*entries]} as evaluate}:
            data = recipe.get("data")
            also = [_completed(entry, data if isinstance(data, dict) else {}) for entry in entries]
            return {**recipe, "evaluate": {**evaluate, "also": also}}
    return recipe


def _completed(entry: Any, data: dict[str, Any]) -> Any:
    if entry == GENERAL:
        entry = {"source": {"embedded": GENERAL}}
    match entry:
        case {"source": {"embedded": _}}:
            task = entry.get("task", data.get("task") if data.get("task") in ("chat", "seq2seq") else "text")
            arguments = {"template_arguments": data["template_arguments"]} if "template_arguments" in data else {}
            like_data = arguments if task == "chat" else {}
            return {**_DEFAULTS, "task": task, **_TEMPLATES.get(task, {}), **like_data, **entry}
    return entry
