"""Check without reading its weights that a run can start from a base model's folder.

`plan` runs these checks early; loading and training repeat them. Imports no torch.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.architecture.shapes import Shapes
from tunesmith.architecture.weight_headers import EMBEDDINGS, OUTPUTS, tensor_shapes
from tunesmith.core.errors import DamagedFile, RecipeError

# Where quantization tools store their settings: under a key of config.json, or in a separate file (AutoGPTQ, AutoAWQ).
_QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
_QUANTIZED_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_MAX_NAMES = 24
_OTHER_MODEL = "configuration and weights belong to different models: fetch both again"


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
        message = f"the stored weights are quantized ({method}) and cannot be trained"
        hint = "set model.base to the model it was quantized from; `method: qlora` trains that in 4 or 8 bits"
        raise RecipeError(message, where=str(folder), hint=hint, code="already-quantized")


def refuse_pickle(folder: Path) -> None:
    """Raise RecipeError if a model's weights exist only as pickle, which is never read."""
    if not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")):
        message = "the weights exist only as pickle (*.bin), which can run code"
        hint = "load the model with transformers and save it again: save_pretrained writes safetensors"
        raise RecipeError(message, where=str(folder), hint=hint, code="pickle")


def require_vocabulary(folder: Path, vocabulary: int) -> None:
    """Raise RecipeError if the input embedding in a model's weights has another size than its configuration.

    Args:
        vocabulary: `vocab_size` of the configuration, or 0 if it is missing.
    """
    shapes = {
        tuple(shape)
        for name, shape in tensor_shapes(folder).items()
        if len(shape) == 2 and name.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS
    }
    if len(shapes) == 1 and (rows := shapes.pop()[0]) != vocabulary:
        problem, hint = f"vocab_size is {vocabulary}", _OTHER_MODEL
        if not vocabulary:
            problem, hint = "has no vocab_size", "it does not describe a language model: fetch the model again"
        message = f"{problem}, but the embedding in the weights has {rows} rows"
        raise RecipeError(message, where=str(folder / "config.json"), hint=hint, code="vocabulary-mismatch")


def require_layers(folder: Path, shapes: Shapes) -> None:
    """Raise RecipeError if the weights have fewer layers than the configuration, or more in a known architecture.

    An unknown architecture may have additional layers, such as those for multi-token prediction.
    """
    if shapes.has_encoder and not shapes.known:
        return
    names = list(tensor_shapes(folder))
    for stack in (stack for stack in shapes.stacks if stack.layer.attention):
        # Files may omit the first part of a path.
        paths = f"{stack.prefix}|^{stack.prefix.partition('.')[2]}" if stack.prefix else "layers|h|blocks?"
        numbers: dict[str, set[int]] = {}
        for name in names:
            if match := re.match(rf"(.*?(?<!\w)(?:{paths}))\.(\d+)\.", name):
                numbers.setdefault(match[1], set()).add(int(match[2]))
        stored = max(numbers.values(), key=len, default=set())
        if stored and (missing := set(range(stack.count)) - stored):
            problem, hint = f"layer {min(missing)} is missing in the weights", _OTHER_MODEL
        elif shapes.known and (extra := stored - set(range(stack.count))):
            problem = f"the weights also have layer {min(extra)}"
            hint = "compare the number of layers with that of the original model"
        else:
            continue
        message = f"the model has {stack.count} layers, but {problem}"
        raise RecipeError(message, where=str(folder / "config.json"), hint=hint, code="layer-mismatch")


def require_embedding_rows(highest: int, rows: int, *, where: str) -> None:
    """Raise RecipeError if rows have a token for which the model has no embedding.

    Args:
        highest: the highest token id in any row.
        rows: the number of rows of the model's embedding.
    """
    if highest >= rows:
        message = f"the tokenizer gives token {highest}, but the embedding has only {rows} rows"
        hint = "use the model that the tokenizer belongs to, or save the model after `resize_token_embeddings`"
        raise RecipeError(message, where=where, hint=hint, code="vocabulary-mismatch")


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
        message, hint = f"the model has no module {', '.join(unknown)}", f"it has {', '.join(known[:_MAX_NAMES])}"
        raise RecipeError(message, where="tuning.target", hint=hint, code="wrong-target")


def _matches(entry: str, name: str) -> bool:
    """Return whether a target entry names a module; weight files may omit the first part of the module's path."""
    return f".{name}".endswith(f".{entry}") or entry.endswith(f".{name}")


def check_targets(folder: Path, shapes: Shapes, target: Sequence[str]) -> None:
    """Raise RecipeError if a name in `tuning.target` is not a linear layer, by the model's weights and architecture."""
    tensors = tensor_shapes(folder)
    named = {name for name, _ in shapes.linear()} if shapes.known or not tensors else set()
    stored = {name.removesuffix(".weight"): len(shape) for name, shape in tensors.items() if name.endswith(".weight")}
    possible = (*OUTPUTS, *(() if stored else EMBEDDINGS))
    require_targets(target, sorted({*named, *stored}), possible=possible)
    for entry in target:
        # An entry may also name linear layers; it is wrong if all modules that it names are vectors.
        if {stored.get(name, 2) >= 2 for name in {*named, *stored} if _matches(entry, name)} == {False}:
            message = f"`{entry}` is not a linear layer: its weight is a vector, which LoRA cannot adapt"
            hint = "name linear layers, or use all-linear"
            raise RecipeError(message, where="tuning.target", hint=hint, code="wrong-target")


def require_trainable_rows(folder: Path, shapes: Shapes) -> None:
    """Raise RecipeError if LoRA cannot train the rows of new tokens alone, by the model's architecture and weights."""
    if shapes.has_encoder:
        raise untrainable_rows(SHARED_WITH_ENCODER)
    biases = [name.removesuffix(".bias") for name in tensor_shapes(folder) if name.endswith(".bias")]
    if any(name.rpartition(".")[2] in OUTPUTS[:2] for name in biases):
        raise untrainable_rows(OUTPUT_BIAS)


OUTPUT_BIAS = "the output layer has a bias, which peft would ignore"
SHARED_WITH_ENCODER = "encoder and decoder share the embedding, and peft would train the rows of only one of them"


def untrainable_rows(reason: str) -> RecipeError:
    """Return the error for new tokens whose rows LoRA cannot train."""
    message = f"with LoRA, the rows of new tokens cannot be trained in this model: {reason}"
    hint = "use `tuning: {method: full}`, or train without model.add_tokens and model.chat_markup"
    return RecipeError(message, where="model", hint=hint, code="untrainable-rows")
