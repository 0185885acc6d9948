"""The stages of a run in order, one row each. Everything that lists, runs, shows or submits stages reads this table.

prepare -> train -> replicate -> evaluate -> report -> promote -> report -> export -> report
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: its folder, its module in `package` and the function there that runs it.
        summary: the help text of its command.
        activity: the stage as a noun in a sentence: "this run stopped before training".
        package: has the module of the stage, which is imported only when it runs, and a light module `inputs` with a
            function `inputs` that returns everything that the result depends on.
        unit: the unit of its progress; empty if it shows none.
        on_all_ranks: all processes of a run work at it; other stages run on rank 0 alone.
        keeps_result: its result is never replaced. If its inputs have changed, the run is refused.
        reads_outside: its inputs include files outside the run, which are looked for before anything is written.
        key: the key of the recipe without which it is skipped; empty if it is never skipped.
        has_command: whether a command ends with it.
        is_reported: the report is written after it.
        is_rare: few recipes ask for it, so the reports of the others do not mention it.
    """

    name: str
    summary: str
    activity: str
    package: str
    unit: Literal["", "step", "answer"] = ""
    on_all_ranks: bool = False
    keeps_result: bool = False
    reads_outside: bool = False
    key: str = ""
    has_command: bool = True
    is_reported: bool = False
    is_rare: bool = False

    @property
    def command(self) -> str:
        """The command that takes a run up to this stage; `promote` and `export` take a run or a model."""
        return self.name if self.has_command else "run"


PREPARE, TRAIN, REPLICATE, EVALUATE, PROMOTE, EXPORT = STAGES = (
    Stage(
        "prepare", "Read, split, render and check the rows.", activity="preparing the data", package="tunesmith.data",
        keeps_result=True, reads_outside=True,
    ),
    Stage(
        "train", "Train the model, after `prepare`.", activity="training", package="tunesmith.train",
        unit="step", on_all_ranks=True, keeps_result=True,
    ),
    Stage(
        "replicate", "Train with the further seeds of `replicates`, after `train`.", activity="training further seeds",
        package="tunesmith.replicate", unit="step", on_all_ranks=True, key="replicates", is_rare=True,
    ),
    Stage(
        "evaluate", "Compare base and tuned on the test rows, after `train`.", activity="evaluation",
        package="tunesmith.evaluate", unit="answer", on_all_ranks=True, reads_outside=True, is_reported=True,
    ),
    Stage(
        "promote", "Register the tuned model, after `evaluate`.", activity="promotion", package="tunesmith.promote",
        key="promote", has_command=False, is_reported=True,
    ),
    Stage(
        "export", "Write the tuned model in the formats of `export`, after `promote`.", activity="export",
        package="tunesmith.export", key="export", has_command=False, is_reported=True, is_rare=True,
    ),
)  # fmt: skip


def stage_named(name: str) -> Stage:
    """Return the stage with a name; raise KeyError if there is none."""
    return {stage.name: stage for stage in STAGES}[name]
