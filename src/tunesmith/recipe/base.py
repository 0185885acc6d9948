"""The base class of the recipe's sections, and types that several sections use."""

from collections.abc import Callable
from datetime import date
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic_core import PydanticCustomError

from tunesmith.core.errors import RecipeError


class Section(BaseModel):
    """Base of every section of a recipe: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self, *keys: str) -> list[str]:
        """Return those of the keys whose values are not the defaults, whether or not they were written."""
        return [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]


Fraction = Annotated[float, Field(ge=0, lt=1)]
NonEmptyStrings = Annotated[tuple[str, ...], Field(min_length=1)]


def setting_error(code: str, message: str) -> PydanticCustomError:
    """Return the error to raise in a validator: pydantic collects it, and `load_recipe` keeps its code."""
    return PydanticCustomError(code, message)


def _read_date(value: object) -> object:
    """Return a date as YAML and JSON write it; pydantic would also read seconds since 1970."""
    try:
        return date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise setting_error("wrong-value", f"must be a date, such as 2026-05-01 (found {value!r})") from None


Date = Annotated[date, Strict(), BeforeValidator(_read_date)]


def message_and_code(error: RecipeError) -> tuple[str, str]:
    """Return the message, with its hint, and the error code for a key whose value a check has refused."""
    message = f"{error.message}{f'; {error.hint}' if error.hint else ''}"
    return message, "wrong-value" if error.code == RecipeError.code else error.code


def checked_by(check: Callable[[str], None]) -> AfterValidator:
    """Turn a function that raises RecipeError into a validator."""

    def validate(value: str) -> str:
        try:
            check(value)
        except RecipeError as error:
            message, code = message_and_code(error)
            raise setting_error(code, message) from None
        return value

    return AfterValidator(validate)
