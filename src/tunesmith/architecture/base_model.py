"""Checks of a base model's folder before its weights are read: can a run start from it?

`plan` makes them in advance, loading and training again. No torch is imported.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.architecture.shapes import Shapes
from tunesmith.architecture.weight_headers import tensor_shapes
from tunesmith.core.errors import DamagedFile, RecipeError

# Endings of the tensors that hold one vector per input token, in the architectures of transformers.
_EMBEDDINGS = ("embed_tokens", "wte", "shared", "word_embeddings", "embed_in", "tok_embeddings", "embedding")
# Names of the output layer, which has no tensor of its own if it shares the embedding's.
_OUTPUTS = ("lm_head", "embed_out", "output")
# Where quantization tools store their settings: in config.json, or in a file of their own (AutoGPTQ, AutoAWQ).
_QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
_QUANTIZED_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_MOST_NAMES = 24


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's configuration; raise DamagedFile if config.json is not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFile(f"is not valid JSON: {error}", where=str(path), hint="fetch it again") from error
    if not isinstance(config, dict):
        raise DamagedFile("is not a JSON object", where=str(path), hint="fetch it again")
    return config


def language_config(folder: Path) -> dict[str, Any]:
    """Return a model's configuration as that of its language model, which others keep in `text_config`."""
    config = read_config(folder)
    return {**config, **(config.get("text_config") or {})}


def stored_quantization(folder: Path) -> str | None:
    """Return the method by which a folder's weights were quantized, or None."""
    config = read_config(folder)
    for place in (config, config.get("text_config") or {}):
        for settings in filter(None, map(place.get, _QUANTIZED_KEYS)):
            return _method(settings) if isinstance(settings, dict) else str(settings)
    return next((method for name, method in _QUANTIZED_FILES.items() if (folder / name).exists()), None)


def _method(settings: dict[str, Any]) -> str:
    method = str(settings.get("quant_method") or "an unnamed method")
    bits = settings.get("bits")
    if method == "bitsandbytes":
        bits = 8 if settings.get("load_in_8bit") else 4
    return f"{method}, {bits} bits" if bits else method


def refuse_quantized(folder: Path) -> None:
    """Raise RecipeError for a base whose stored weights are already quantized: it can be neither trained nor merged."""
    if method := stored_quantization(folder):
        raise RecipeError(
            f"its stored weights are quantized already ({method}) and cannot be trained",
            where=str(folder),
            hint="set model.base to the model that it was quantized from; `tuning: {method: qlora}` keeps that one in "
            "4 or 8 bits while it trains",
        )


def refuse_pickle(folder: Path) -> None:
    """Raise RecipeError if a model has its weights only as pickle, which is never read."""
    if not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")):
        raise RecipeError(
            "has its weights only as pickle (*.bin), which can run code",
            where=str(folder),
            hint="load it with transformers and save it again: save_pretrained writes safetensors",
        )


def embedding_rows(folder: Path, vocabulary: int) -> int:
    """Return for how many tokens a model has input vectors: by its weights, or by its configuration without them.

    Args:
        vocabulary: `vocab_size` of its configuration, 0 if that names none.

    Raises:
        RecipeError: weights and configuration disagree, or it names no vocabulary: the model could not be loaded.
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
            f"names no vocab_size, and the embedding in its weights has {rows} rows",
            where=str(folder / "config.json"),
            hint="it is not the configuration of a language model that transformers knows: fetch it again",
        )
    if rows != vocabulary:
        raise RecipeError(
            f"says vocab_size {vocabulary}, and the embedding in its weights has {rows} rows",
            where=str(folder / "config.json"),
            hint="configuration and weights belong to different models: fetch both again",
        )
    return rows


def require_layers(folder: Path, shapes: Shapes) -> None:
    """Raise RecipeError if weights have fewer layers than the configuration names, or more, if that is known.

    Weights of an architecture that is not described may have layers beyond, such as those that predict further tokens.
    """
    if shapes.has_encoder and not shapes.known:
        return
    names, where = list(tensor_shapes(folder)), str(folder / "config.json")
    for stack in (stack for stack in shapes.stacks if stack.layer.attention):
        # Files may leave out the first part of a path.
        ends = f"{stack.prefix}|^{stack.prefix.partition('.')[2]}" if stack.prefix else "layers|h|blocks?"
        found: dict[str, set[int]] = {}
        for name in names:
            if number := re.match(rf"(.*?(?<!\w)(?:{ends}))\.(\d+)\.", name):
                found.setdefault(number[1], set()).add(int(number[2]))
        held = max(found.values(), key=len, default=set())
        if lost := sorted(set(range(stack.count)) - held) if held else []:
            raise RecipeError(
                f"says that the model has {stack.count} layers, and its weights lack layer {lost[0]}", where=where,
                hint="configuration and weights belong to different models: fetch both again",
            )  # fmt: skip
        if shapes.known and (more := sorted(held - set(range(stack.count)))):
            raise RecipeError(
                f"says that the model has {stack.count} layers, and its weights have layer {more[0]} too", where=where,
                hint="compare its number of layers with that of the original model",
            )  # fmt: skip


def require_embedding_rows(highest: int, rows: int, *, where: str) -> None:
    """Raise RecipeError for rows with a token for which the model has no vector.

    Args:
        highest: the highest id in any row.
        rows: how many vectors the model's embedding has.
    """
    if highest >= rows:
        raise RecipeError(
            f"its tokenizer writes token {highest}, and its embedding has {rows} rows, for tokens 0 to {rows - 1}",
            where=where,
            hint="tokenizer and weights do not fit together: tokens were added without resizing the embedding; "
            "use the model that the tokenizer was made for, or save it after `resize_token_embeddings`",
        )


def require_targets(target: Sequence[str], modules: Iterable[str], *, possible: Sequence[str] = ()) -> None:
    """Raise RecipeError if a name of `tuning.target` matches no module; peft refuses only if none matches.

    Args:
        modules: the paths of all modules that have weights.
        possible: names of further modules that the model may have.
    """
    names = list(modules)
    lost = [wanted for wanted in target if not any(_matches(wanted, name) for name in (*names, *possible))]
    if lost:
        known = sorted({name.rpartition(".")[2] for name in names})
        raise RecipeError(
            f"matches no module of the model: {', '.join(lost)}",
            where="tuning.target",
            hint=f"its modules are {', '.join(known[:_MOST_NAMES])}",
        )


def _matches(wanted: str, name: str) -> bool:
    """Say whether a target names a module; files of weights may leave out the first part of its path."""
    return f".{name}".endswith(f".{wanted}") or wanted.endswith(f".{name}")


def check_targets(folder: Path, shapes: Shapes, target: Sequence[str]) -> None:
    """Raise RecipeError if a name of `tuning.target` is no linear layer of a model, by its weights and architecture."""
    tensors = tensor_shapes(folder)
    named = {name for name, _ in shapes.linear()} if shapes.known or not tensors else set()
    stored = {name.removesuffix(".weight"): len(shape) for name, shape in tensors.items() if name.endswith(".weight")}
    possible = (*_OUTPUTS, *(() if stored else _EMBEDDINGS))
    require_targets(target, sorted({*named, *stored}), possible=possible)
    vectors = [name for name, dimensions in stored.items() if dimensions < 2]
    for wanted in target:
        if any(_matches(wanted, name) for name in vectors) and not any(
            _matches(wanted, name) for name in {*named, *stored} - set(vectors)
        ):
            raise RecipeError(
                f"`{wanted}` is not a linear layer: its weight is a vector, which LoRA cannot adapt",
                where="tuning.target",
                hint="name linear layers, or use all-linear",
            )


def refuse_new_tokens_with_bias(folder: Path) -> None:
    """Raise RecipeError if new tokens' rows cannot be trained alone, because the output layer has a bias too."""
    biases = [name.removesuffix(".bias") for name in tensor_shapes(folder) if name.endswith(".bias")]
    if any(name.rpartition(".")[2] in _OUTPUTS[:2] for name in biases):
        raise output_bias_error()


def output_bias_error() -> RecipeError:
    """Return the error for new tokens in a model whose output layer has a bias, which peft would leave out."""
    return RecipeError(
        "the output layer has a bias, so rows of new tokens cannot be trained alone",
        where="model.chat_markup",
        hint="use `tuning: {method: full}`, or `task: completion`",
    )
