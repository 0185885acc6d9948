"""What every part of a recipe is made of."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tunesmith.core.errors import RecipeError


class Section(BaseModel):
    """Base of every part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


NonEmptyStrings = Annotated[tuple[str, ...], Field(min_length=1)]


def checked_by(check: Callable[[str], None]) -> AfterValidator:
    """Use a rule that raises RecipeError, told as pydantic tells it."""

    def validate(name: str) -> str:
        try:
            check(name)
        except RecipeError as error:
            raise ValueError(f"{error.message}{f'; {error.hint}' if error.hint else ''}") from None
        return name

    return AfterValidator(validate)
