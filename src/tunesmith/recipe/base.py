"""The base class of the recipe's sections, and types that several sections use."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tunesmith.core.errors import RecipeError


class Section(BaseModel):
    """Base of every section of a recipe: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, lt=1)]
NonEmptyStrings = Annotated[tuple[str, ...], Field(min_length=1)]


def setting_error(code: str, message: str) -> PydanticCustomError:
    """Return the error to raise in a validator: pydantic collects it, and `load_recipe` keeps its code."""
    return PydanticCustomError(code, message)


def code_and_message(error: RecipeError) -> tuple[str, str]:
    """Return the error code and the message, with its hint, for a key whose value a check has refused."""
    code = "wrong-value" if error.code == RecipeError.code else error.code
    return code, f"{error.message}{f'; {error.hint}' if error.hint else ''}"


def checked_by(check: Callable[[str], None]) -> AfterValidator:
    """Turn a function that raises RecipeError into a validator."""

    def validate(value: str) -> str:
        try:
            check(value)
        except RecipeError as error:
            raise setting_error(*code_and_message(error)) from None
        return value

    return AfterValidator(validate)
