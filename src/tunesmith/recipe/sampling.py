"""The section `evaluate.sampling`: how the tokens of an answer are chosen."""

from typing import Self

from pydantic import Field, model_validator

from tunesmith.recipe.base import Section, setting_error


class Sampling(Section):
    """How the tokens of an answer are chosen: greedily by default, or drawn from the model's filtered distribution."""

    temperature: float = Field(
        0.0,
        ge=0,
        description="0 takes the most likely token (greedy). Above 0, tokens are sampled; 1 samples from the "
        "model's own distribution, and lower values favour likely tokens.",
    )
    top_k: int | None = Field(None, ge=1, description="Sample from this number of most likely tokens only.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample from the smallest set of tokens whose probabilities sum to at least this."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Sample from tokens with at least this share of the highest probability."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="Above 1, tokens that the prompt or the answer contains become less likely."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of sampled answers. The seed of each answer follows from it and the row's id.",
    )

    @model_validator(mode="after")
    def _check_temperature(self) -> Self:
        unused = [] if self.temperature else self.changed("top_k", "top_p", "min_p", "seed")
        if unused:
            names = " and ".join(f"`{name}`" for name in unused)
            raise setting_error("no-effect", f"{names}: no effect without a `temperature`, such as 1")
        return self
