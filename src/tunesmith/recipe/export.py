"""The section `export`: the formats of other programs in which a run writes its model."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from tunesmith.recipe.base import Section

PlainType = Literal["f32", "f16", "bf16"]
"""The types of weights that transformers stores, as llama.cpp names them."""

Reader = Literal["peft", "vllm", "llama.cpp"]
"""Programs that read adapters."""

READERS: tuple[Reader, ...] = get_args(Reader)


class ExportBase(Section):
    """Keys that all formats share."""

    out: str | None = Field(
        None, description="Folder to create, relative to the recipe; default `export/FORMAT-TYPE` in the run's folder."
    )

    @property
    def folder_name(self) -> str:
        """The name of the default folder."""
        return "-".join(str(getattr(self, key)) for key in ("to", "type") if getattr(self, key, None))


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


Export = Annotated[MergedExport | AdapterExport, Field(discriminator="to")]
