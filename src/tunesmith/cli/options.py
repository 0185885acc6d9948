"""What several verbs of the command line take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tunesmith.core.errors import RecipeError

Overrides = Annotated[str, Parameter(help="Changes to the recipe, such as train.max_steps=20.")]
RecipeOrRun = Annotated[Path, Parameter(help="A recipe's file, or the folder of a run.")]
RunFolder = Annotated[Path, Parameter(help="The folder of a run.")]
Out = Annotated[
    Path | None,
    Parameter(
        help="Folder of the run; default runs/NAME/ID in the current folder. ID follows from the recipe and its folder."
    ),
]


def _is_html(_: type, file: Path | None) -> None:
    """Raise ValueError for a file that is to be written and is named like another kind, as a recipe or its rows."""
    if file is not None and file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{file} is not named as HTML is; give a name that ends in .html")


HtmlFile = Annotated[Path | None, Parameter(validator=_is_html, help="Write them to this HTML file (*.html) instead.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON.")]
Detach = Annotated[bool, Parameter(negative="", help="Return when the jobs of Slurm are in line.")]
Texts = Annotated[list[str] | None, Parameter(negative="")]
RowValues = Annotated[
    list[str] | None,
    Parameter(negative="", help="COLUMN=VALUE: a column of the model's prompt or system turn; once for each column."),
]
ModelName = Annotated[
    str, Parameter(help="A model: org/name, a folder, a .gguf file, pypi:, a run's folder, NAME@ALIAS.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """Where a run runs, beside what its recipe says.

    Args:
        on: `local` is here, whatever the recipe's `launch` says; `torchrun` is here in launch.processes=N processes;
            `slurm` gives every stage to Slurm as a job.
        nodes: machines on Slurm; the same as launch.nodes=N.
    """

    on: Literal["local", "torchrun", "slurm"] | None = None
    nodes: int | None = None

    def changes(self) -> list[str]:
        """Return what this changes in the recipe."""
        if self.on == "local" and self.nodes is not None:
            raise RecipeError("--nodes has no effect on --on local")
        on = [f"launch.on={self.on}"] if self.on not in (None, "local") else []
        return on + ([f"launch.nodes={self.nodes}"] if self.nodes is not None else [])


AS_WRITTEN = Where()  # where the recipe says
