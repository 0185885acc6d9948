"""What several verbs of the command line take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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
    """Raise ValueError unless the name of an output file is one of HTML, so that no recipe or data is overwritten."""
    if file is not None and file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{file} is not the name of an HTML file; give a name that ends in .html")


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


@Parameter(name="*")
@dataclass(frozen=True)
class SamplingOptions:
    """How the tokens of an answer are chosen. Without a temperature it is always the likeliest one.

    Args:
        temperature: 0 takes the likeliest token. Above 0 tokens are drawn: at 1 with the model's own probabilities, and
            the lower, the more often the likeliest one.
        top_k: draw from this many of the likeliest tokens only.
        top_p: draw from the fewest likeliest tokens whose probabilities sum up to this, such as 0.95.
        min_p: draw from tokens that are at least this share as likely as the likeliest one, such as 0.05.
        repetition_penalty: above 1 makes tokens that the prompt or the answer holds less likely.
        stop: a text before which the answer ends; may be given several times.
        seed: makes drawn answers repeatable; by default they differ with each command.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: Texts = None
    seed: int | None = None

    def settings(self, *, max_new_tokens: int | None, beams: int = 1, samples: int = 1) -> dict[str, Any]:
        """Return the settings of `Chatter.ask`; raise RecipeError if they contradict each other."""
        from tunesmith.inference.sampling import Sampling, refuse_contradictions

        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, self.seed)
        stop = self.stop or []
        refuse_contradictions(sampling, samples=samples, beams=beams, stop=stop, max_new_tokens=max_new_tokens)
        return {"sampling": sampling, "stop": stop, "beams": beams, "max_new_tokens": max_new_tokens}


GREEDILY = SamplingOptions()  # the likeliest answer
AS_WRITTEN = Where()  # where the recipe says
