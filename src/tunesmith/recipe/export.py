"""The section `export`: the formats of other programs in which a run writes its model."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from tunesmith.recipe.base import Section

PlainType = Literal["f32", "f16", "bf16"]
"""The types of weights that transformers stores, as llama.cpp names them."""

GgufTypeName = Literal[
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0",
    "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
]  # fmt: skip
"""The types of GGUF files; those with `k` are written by llama-quantize."""

Reader = Literal["peft", "vllm", "llama.cpp"]
"""Programs that read adapters."""

READERS: tuple[Reader, ...] = get_args(Reader)


class ExportBase(Section):
    """Keys that all formats share."""

    out: str | None = Field(
        None, description="Folder to create, relative to the recipe; default `export/FORMAT-TYPE` in the run's folder."
    )

    repo: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Repository on the hub to which the folder is uploaded; private if it is new.",
    )

    @property
    def folder_name(self) -> str:
        """The name of the default folder."""
        parts = [getattr(self, key, None) for key in ("to", "type")]
        return "-".join([*filter(None, parts), *(["lora"] if getattr(self, "adapter_only", False) else [])])


class MergedExport(ExportBase):
    """A transformers folder; an adapter is merged into its base."""

    to: Literal["merged"]
    type: PlainType | None = Field(None, description="Type of the weights; default that of the base's files.")


class AdapterExport(ExportBase):
    """A PEFT adapter."""

    to: Literal["adapter"]
    readers: tuple[Reader, ...] = Field(
        READERS, min_length=1, description="The programs that must be able to read the adapter."
    )


class GgufExport(ExportBase):
    """A file for llama.cpp and the programs that are built on it."""

    to: Literal["gguf"]
    type: GgufTypeName | None = Field(
        None, description="Type of the weights; default f16, or f32 with `adapter_only`. See docs/export.md."
    )
    adapter_only: bool = Field(False, description="Write the adapter without its base.")
    quantize_with: str | None = Field(
        None,
        description="llama.cpp's `llama-quantize`, which writes the types with `k`: a path, relative to the recipe, or "
        "a name on the PATH.",
    )


Export = Annotated[MergedExport | AdapterExport | GgufExport, Field(discriminator="to")]
