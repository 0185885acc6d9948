"""The section `tuning`: which parameters are trained, and how the frozen ones are stored."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.base import Fraction, NonEmptyStrings, Section, checked_by, setting_error


def _check_pattern(pattern: str) -> None:
    parts = pattern.split(".")
    if not all(re.fullmatch(r"\d+-\d+|[\w*]+", part) for part in parts):
        message = f"is not a module: `{pattern}`; write names such as `embed_tokens`, `layers.0-11` or `layers.*.mlp`"
        raise RecipeError(message, code="wrong-value")


class FullTuning(Section):
    """Train all parameters, or all but the frozen ones."""

    method: Literal["full"]
    freeze: tuple[Annotated[str, checked_by(_check_pattern)], ...] = Field(
        (), description="Modules to leave as they are: `embed_tokens`, `layers.0-11` or `layers.*.mlp`, and all below."
    )


class LoraBase(Section):
    """Keys that LoRA and QLoRA share."""

    rank: int = Field(16, ge=1, description="Rank of the low-rank update.")
    alpha: float = Field(32, gt=0, description="The update is multiplied by alpha / rank.")
    dropout: Fraction = Field(0.0, description="Dropout on the input of the update.")
    target: Literal["all-linear"] | NonEmptyStrings = Field(
        "all-linear", description="Names of the modules to adapt, or all linear layers except the output layer."
    )
    rslora: bool = Field(False, description="Multiply by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732).")
    dora: bool = Field(False, description="Train the magnitude of each row separately (Liu 2024, arXiv:2402.09353).")


class LoraTuning(LoraBase):
    """Train low-rank updates of frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

    method: Literal["lora"]


class Quantization(Section):
    """How the frozen linear layers are quantized. Embeddings and the output layer keep their precision."""

    bits: Literal[4, 8] = Field(4, description="4 (QLoRA) or 8 (LLM.int8(); Dettmers 2022, arXiv:2208.07339).")
    quantization: Literal["nf4", "fp4"] | None = Field(None, description="Data type of 4-bit weights; default nf4.")
    double_quantization: bool | None = Field(
        None, description="Quantize the scales of 4-bit weights too, which saves 0.4 bits per weight; default true."
    )

    @model_validator(mode="after")
    def _check_bits(self) -> Self:
        if self.bits == 8 and (self.quantization is not None or self.double_quantization is not None):
            raise setting_error("no-effect", "`quantization` and `double_quantization` have no effect on 8 bits")
        return self

    @property
    def code(self) -> str:
        """The data type of a weight: `nf4`, `fp4` or `int8`."""
        return "int8" if self.bits == 8 else self.quantization or "nf4"

    @property
    def is_double(self) -> bool:
        """Whether the scales are quantized too."""
        return self.bits == 4 and self.double_quantization is not False

    def __str__(self) -> str:
        return f"{self.code}{' with double quantization' if self.is_double else ''}"


class QloraTuning(LoraBase, Quantization):
    """LoRA on weights stored in 4 or 8 bits (Dettmers et al. 2023, arXiv:2305.14314)."""

    method: Literal["qlora"]


Tuning = Annotated[FullTuning | LoraTuning | QloraTuning, Field(discriminator="method")]
