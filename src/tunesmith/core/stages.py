"""The stages of a run in order, one row each. Everything that lists, runs, shows or submits stages reads this table.

prepare -> train -> evaluate -> report -> promote -> report
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: its folder, the function in `module` that runs it and, if it is optional, its section of the recipe.
        summary: the help text of its command.
        activity: the stage as a noun in a sentence: "this run stopped before training".
        module: imported only when the stage runs.
        inputs_module: a light module whose function `inputs` returns everything that the result depends on.
        command: the subcommand of tunesmith that takes a run up to this stage.
        unit: the unit of its progress; empty if it shows none.
        on_all_ranks: all processes of a run work at it; other stages run on rank 0 alone.
        keeps_result: its result is never replaced. If its inputs have changed, the run is refused.
        reads_outside: its inputs include files outside the run, which are looked for before anything is written.
        is_optional: it is skipped if the recipe has no section of its name.
        is_reported: the report is written after it.
    """

    name: str
    summary: str
    activity: str
    module: str
    inputs_module: str
    command: str
    unit: Literal["", "step", "answer"] = ""
    on_all_ranks: bool = False
    keeps_result: bool = False
    reads_outside: bool = False
    is_optional: bool = False
    is_reported: bool = False


PREPARE, TRAIN, EVALUATE, PROMOTE = STAGES = (
    Stage(
        name="prepare",
        summary="Read, split, render and check the rows.",
        activity="preparing the data",
        module="tunesmith.data.prepare",
        inputs_module="tunesmith.data.inputs",
        command="prepare",
        keeps_result=True,
        reads_outside=True,
    ),
    Stage(
        name="train",
        summary="Train the model, after `prepare`.",
        activity="training",
        module="tunesmith.train.train",
        inputs_module="tunesmith.train.inputs",
        command="train",
        unit="step",
        on_all_ranks=True,
        keeps_result=True,
    ),
    Stage(
        name="evaluate",
        summary="Compare base and tuned on the test rows, after `train`.",
        activity="evaluation",
        module="tunesmith.evaluate.evaluate",
        inputs_module="tunesmith.evaluate.inputs",
        command="evaluate",
        unit="answer",
        on_all_ranks=True,
        reads_outside=True,
        is_reported=True,
    ),
    Stage(
        name="promote",
        summary="Register the tuned model, after `evaluate`.",
        activity="promotion",
        module="tunesmith.promote.promote",
        inputs_module="tunesmith.promote.promote",
        command="run",  # `tunesmith promote` is for promoting by hand
        is_optional=True,
        is_reported=True,
    ),
)


def stage_named(name: str) -> Stage:
    """Return the stage with a name; raise KeyError if there is none."""
    return {stage.name: stage for stage in STAGES}[name]
