"""The tensors of a transformers folder, as a GGUF file has them: renamed, reordered, and read in parts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gguf import get_tensor_name_map
from safetensors import safe_open

from tunesmith.architecture.weight_headers import OUTPUTS, tensor_files, tensor_shapes
from tunesmith.core.errors import RecipeError
from tunesmith.gguf.architectures import Architecture
from tunesmith.gguf.tensor_types import EMBEDDING, OUTPUT
from tunesmith.gguf.unsupported import unsupported

_CHUNK = 2**24  # values converted at a time: 64 MiB in fp32
# Constants that older versions of transformers saved with the weights.
_CONSTANTS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to write.

    Attributes:
        name: in the GGUF file.
        source: in the safetensors file.
        shape: as torch gives it, after transposing.
        file: the safetensors file; None for a tensor that was computed.
        order: the order of rows; None to keep it.
        transposed: whether `source` is stored as [in, out].
        offset: added to each value.
        values: the values of a tensor that was computed.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    file: Path | None = None
    order: torch.Tensor | None = None
    transposed: bool = False
    offset: float = 0.0
    values: torch.Tensor | None = None

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yield the tensor's rows in fp32, some at a time, so that memory does not grow with its size."""
        if self.file is None:
            assert self.values is not None
            yield self.values
            return
        with safe_open(self.file, "pt") as stored:
            whole = stored.get_tensor(self.source)  # mapped, not read
            whole = whole.T if self.transposed else whole
            rows = max(1, _CHUNK // max(1, whole[0].numel())) if whole.ndim else 1
            for first in range(0, len(whole), rows):
                last = first + rows
                part = whole[first:last] if self.order is None else whole[self.order[first:last]]
                part = part.float().contiguous()
                yield part + self.offset if self.offset else part


def computed_tensor(name: str, source: str, values: torch.Tensor) -> Tensor:
    """Return a tensor of fp32 values; `source` names it in errors."""
    return Tensor(name, source, tuple(values.shape), values=values)


def list_tensors(folder: Path, config: Any, architecture: Architecture) -> list[Tensor]:
    """Return the tensors of a model in the order of its layers. Reads headers only.

    Raises:
        RecipeError: llama.cpp has no place for a tensor, or the output layer contradicts the configuration.
    """
    names = get_tensor_name_map(architecture.kind, config.num_hidden_layers)
    files, tensors, stored_output = tensor_files(folder), [], None
    for source, stored in sorted(tensor_shapes(folder).items(), key=lambda item: _by_layer(item[0])):
        if _CONSTANTS.search(source):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            message = f"llama.cpp has no place for the tensor `{source}` in `{architecture.name}`"
            raise unsupported(message, folder)
        is_output = source.rpartition(".")[0] in OUTPUTS
        if is_output and config.tie_word_embeddings:
            stored_output = Tensor(OUTPUT, source, tuple(stored), files[source])
            continue
        module = source.split(".")[-2]
        transposed = module in architecture.transposed and source.endswith(".weight")
        tensors.append(
            Tensor(
                name=name,
                source=source,
                shape=tuple(reversed(stored)) if transposed else tuple(stored),
                file=files[source],
                order=architecture.row_order(source, config),
                transposed=transposed,
                offset=architecture.norm_offset if source.endswith("norm.weight") else 0.0,
            )
        )
    if config.tie_word_embeddings:
        embedding = next(tensor for tensor in tensors if tensor.name == EMBEDDING)
        if stored_output is not None:
            _require_equal(stored_output, embedding, folder)
        if architecture.output == "needed":
            tensors.append(replace(embedding, name=OUTPUT))
    return tensors


def _require_equal(output: Tensor, embedding: Tensor, folder: Path) -> None:
    """Raise RecipeError unless a tied output layer that was saved too equals the embedding, which is used for both."""
    if output.shape != embedding.shape or not all(map(torch.equal, output.chunks(), embedding.chunks())):
        message = f"tie_word_embeddings is true, but `{output.source}` differs from `{embedding.source}`"
        hint = "set tie_word_embeddings to false if the output layer was trained apart, or remove it from the weights"
        raise RecipeError(message, where=str(folder / "config.json"), hint=hint, code="weights-mismatch")


def _by_layer(name: str) -> tuple[int, str]:
    """Sort tensors by the number of their layer, after those without one."""
    number = re.search(r"\.(\d+)\.", name)
    return (int(number[1]) if number else -1), name
