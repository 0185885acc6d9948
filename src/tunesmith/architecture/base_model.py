"""Check without reading its weights that a run can start from a base model's folder.

`plan` runs these checks early; loading and training repeat them. Imports no torch.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.architecture.shapes import Shapes
from tunesmith.architecture.weight_headers import tensor_shapes
from tunesmith.core.errors import DamagedFile, RecipeError

# The last parts of the names of input embeddings in the architectures of transformers.
_EMBEDDINGS = ("embed_tokens", "wte", "shared", "word_embeddings", "embed_in", "tok_embeddings", "embedding")
# Names of the output layer. It is not stored if it is tied to the embedding.
_OUTPUTS = ("lm_head", "embed_out", "output")
# Where quantization tools store their settings: under a key of config.json, or in a separate file (AutoGPTQ, AutoAWQ).
_QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
_QUANTIZED_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_MAX_NAMES = 24


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's configuration; raise DamagedFile if config.json is not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFile(f"is not valid JSON: {error}", where=str(path), hint="fetch the model again") from error
    if not isinstance(config, dict):
        raise DamagedFile("is not a JSON object", where=str(path), hint="fetch the model again")
    return config


def language_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a model's language model, which multimodal models keep in `text_config`."""
    config = read_config(folder)
    return {**config, **(config.get("text_config") or {})}


def stored_quantization(folder: Path) -> str | None:
    """Return the method with which a folder's weights were quantized, or None."""
    config = read_config(folder)
    for section in (config, config.get("text_config") or {}):
        for settings in filter(None, map(section.get, _QUANTIZED_KEYS)):
            return _method(settings) if isinstance(settings, dict) else str(settings)
    return next((method for name, method in _QUANTIZED_FILES.items() if (folder / name).exists()), None)


def _method(settings: dict[str, Any]) -> str:
    method = str(settings.get("quant_method") or "an unnamed method")
    bits = settings.get("bits")
    if method == "bitsandbytes":
        bits = 8 if settings.get("load_in_8bit") else 4
    return f"{method}, {bits} bits" if bits else method


def refuse_quantized(folder: Path) -> None:
    """Raise RecipeError for a base whose stored weights are quantized, which can be neither trained nor merged."""
    if method := stored_quantization(folder):
        raise RecipeError(
            f"the stored weights are quantized ({method}) and cannot be trained",
            where=str(folder),
            hint="set model.base to the model that it was quantized from; `tuning: {method: qlora}` trains it in 4 or "
            "8 bits",
            code="already-quantized",
        )


def refuse_pickle(folder: Path) -> None:
    """Raise RecipeError if a model's weights exist only as pickle, which is never read."""
    if not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")):
        raise RecipeError(
            "the weights exist only as pickle (*.bin), which can run code",
            where=str(folder),
            hint="load the model with transformers and save it again: save_pretrained writes safetensors",
            code="pickle",
        )


def embedding_rows(folder: Path, vocabulary: int) -> int:
    """Return the number of rows of a model's input embedding: by its weights, or without them by its configuration.

    Args:
        vocabulary: `vocab_size` of the configuration, or 0 if it is missing.

    Raises:
        RecipeError: weights and configuration disagree, or `vocab_size` is missing, so the model cannot be loaded.
    """
    shapes = {
        tuple(shape)
        for name, shape in tensor_shapes(folder).items()
        if len(shape) == 2 and name.removesuffix(".weight").rpartition(".")[2] in _EMBEDDINGS
    }
    if len(shapes) != 1:
        return vocabulary
    [(rows, _)] = shapes
    if not vocabulary:
        raise RecipeError(
            f"has no vocab_size, but the embedding in the weights has {rows} rows",
            where=str(folder / "config.json"),
            hint="this is not the configuration of a language model in transformers: fetch the model again",
            code="vocabulary-mismatch",
        )
    if rows != vocabulary:
        raise RecipeError(
            f"vocab_size is {vocabulary}, but the embedding in the weights has {rows} rows",
            where=str(folder / "config.json"),
            hint="configuration and weights belong to different models: fetch both again",
            code="vocabulary-mismatch",
        )
    return rows


def require_layers(folder: Path, shapes: Shapes) -> None:
    """Raise RecipeError if the weights have fewer layers than the configuration, or more in a known architecture.

    An unknown architecture may have additional layers, such as those for multi-token prediction.
    """
    if shapes.has_encoder and not shapes.known:
        return
    names, where = list(tensor_shapes(folder)), str(folder / "config.json")
    for stack in (stack for stack in shapes.stacks if stack.layer.attention):
        # Files may omit the first part of a path.
        paths = f"{stack.prefix}|^{stack.prefix.partition('.')[2]}" if stack.prefix else "layers|h|blocks?"
        numbers: dict[str, set[int]] = {}
        for name in names:
            if match := re.match(rf"(.*?(?<!\w)(?:{paths}))\.(\d+)\.", name):
                numbers.setdefault(match[1], set()).add(int(match[2]))
        stored = max(numbers.values(), key=len, default=set())
        if missing := sorted(set(range(stack.count)) - stored) if stored else []:
            raise RecipeError(
                f"the model has {stack.count} layers, but layer {missing[0]} is missing in the weights", where=where,
                hint="configuration and weights belong to different models: fetch both again", code="layer-mismatch",
            )  # fmt: skip
        if shapes.known and (extra := sorted(stored - set(range(stack.count)))):
            raise RecipeError(
                f"the model has {stack.count} layers, but the weights also have layer {extra[0]}", where=where,
                hint="compare the number of layers with that of the original model", code="layer-mismatch",
            )  # fmt: skip


def require_embedding_rows(highest: int, rows: int, *, where: str) -> None:
    """Raise RecipeError if rows have a token for which the model has no embedding.

    Args:
        highest: the highest token id in any row.
        rows: the number of rows of the model's embedding.
    """
    if highest >= rows:
        raise RecipeError(
            f"the tokenizer gives token {highest}, but the embedding has only {rows} rows",
            where=where,
            hint="tokens were added to the tokenizer without resizing the embedding; use the model it belongs to, or "
            "save the model after `resize_token_embeddings`",
            code="vocabulary-mismatch",
        )


def require_targets(target: Sequence[str], modules: Iterable[str], *, possible: Sequence[str] = ()) -> None:
    """Raise RecipeError if a name in `tuning.target` matches no module; peft refuses only if none of them matches.

    Args:
        modules: the paths of all modules that have weights.
        possible: the names of other modules that the model may have.
    """
    names = list(modules)
    unknown = [entry for entry in target if not any(_matches(entry, name) for name in (*names, *possible))]
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in names})
        raise RecipeError(
            f"the model has no such module: {', '.join(unknown)}",
            where="tuning.target",
            hint=f"its modules are {', '.join(known[:_MAX_NAMES])}",
            code="wrong-target",
        )


def _matches(entry: str, name: str) -> bool:
    """Return whether a target entry names a module; weight files may omit the first part of the module's path."""
    return f".{name}".endswith(f".{entry}") or entry.endswith(f".{name}")


def check_targets(folder: Path, shapes: Shapes, target: Sequence[str]) -> None:
    """Raise RecipeError if a name in `tuning.target` is not a linear layer, by the model's weights and architecture."""
    tensors = tensor_shapes(folder)
    named = {name for name, _ in shapes.linear()} if shapes.known or not tensors else set()
    stored = {name.removesuffix(".weight"): len(shape) for name, shape in tensors.items() if name.endswith(".weight")}
    possible = (*_OUTPUTS, *(() if stored else _EMBEDDINGS))
    require_targets(target, sorted({*named, *stored}), possible=possible)
    vectors = [name for name, dimensions in stored.items() if dimensions < 2]
    for entry in target:
        if any(_matches(entry, name) for name in vectors) and not any(
            _matches(entry, name) for name in {*named, *stored} - set(vectors)
        ):
            raise RecipeError(
                f"`{entry}` is not a linear layer: its weight is a vector, which LoRA cannot adapt",
                where="tuning.target",
                hint="name linear layers, or use all-linear",
                code="wrong-target",
            )


def refuse_new_tokens_with_bias(folder: Path) -> None:
    """Raise RecipeError if the output layer has a bias: the rows of new tokens then cannot be trained alone."""
    biases = [name.removesuffix(".bias") for name in tensor_shapes(folder) if name.endswith(".bias")]
    if any(name.rpartition(".")[2] in _OUTPUTS[:2] for name in biases):
        raise output_bias_error()


def output_bias_error() -> RecipeError:
    """Return the error for new tokens in a model whose output layer has a bias, which peft would ignore."""
    return RecipeError(
        "the output layer has a bias, so the rows of new tokens cannot be trained alone",
        where="model.chat_markup",
        hint="use `tuning: {method: full}` or `task: completion`",
        code="output-bias",
    )
