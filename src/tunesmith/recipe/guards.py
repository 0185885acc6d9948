"""What must not get worse: the sections `evaluate.guards` and `evaluate.lm_eval`."""

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import Field, model_validator

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.base import Section, checked_by, setting_error
from tunesmith.registry.names import check_name

Name = Annotated[str, checked_by(check_name)]


class Guard(Section):
    """A metric that must not get worse."""

    metric: str = Field(description="A metric of `evaluate.metrics`.")
    max_drop: float = Field(gt=0, description="In the metric's unit: the interval of the gain must be above -max_drop.")


class HarnessTask(Section):
    """A task of lm-evaluation-harness, on which the tuned model must not get worse (extra `lm-eval`)."""

    task: str = Field(min_length=1, description="Name of a task or of a group of tasks.")
    name: Name | None = Field(None, description="Name of the set in the verdict and in the report; default `task`.")
    folder: str | None = Field(
        None, description="Folder with definitions of tasks (YAML) and their data, relative to the recipe."
    )
    metric: str | None = Field(
        None, description="The metric that must not drop, a mean over rows; default the first of the task."
    )
    rows: int = Field(200, ge=1, description="Maximum number of rows: the first of the task, or of each of a group.")
    fewshot: int | None = Field(None, ge=0, description="Number of examples in each prompt; default that of the task.")
    chat_template: bool = Field(
        False, description="Ask in the model's chat template. Published scores are mostly without it."
    )
    max_drop: float = Field(
        gt=0, description="In the unit of `metric`: the interval of its change must be above -max_drop."
    )

    @property
    def set_name(self) -> str:
        """The name of the set in the verdict."""
        return self.name or self.task

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.name is None:
            try:
                check_name(self.task)
            except RecipeError as error:
                raise setting_error("missing-key", f"`{self.task}` cannot be a name ({error}); set `name`") from None
        return self


def require_distinct(names: Iterable[str]) -> None:
    """Raise the error of a setting if two further sets or tasks have the same name."""
    listed = list(names)
    if repeated := next((name for name in listed if listed.count(name) > 1), None):
        raise setting_error("wrong-value", f"two sets have the name `{repeated}`")
