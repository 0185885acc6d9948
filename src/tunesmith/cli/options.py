"""Parameters that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tunesmith.core.errors import RecipeError

Overrides = Annotated[str, Parameter(help="Changes to the recipe, such as train.max_steps=20.")]
RecipeOrRun = Annotated[Path, Parameter(help="The recipe's file, or the folder of a run.")]
RunFolder = Annotated[Path, Parameter(help="The folder of a run.")]
RunOut = Annotated[
    Path | None, Parameter(help="Folder of the run. Default: runs/NAME/ID; ID follows from the recipe and its folder.")
]


def _require_html(_: type, file: Path | None) -> None:
    """Raise ValueError unless the file has the name of an HTML file, so that no recipe or data is overwritten."""
    if file is not None and file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{file} is not the name of an HTML file; pass a name that ends in .html")


HtmlFile = Annotated[
    Path | None, Parameter(validator=_require_html, help="Write the rows to this HTML file instead of the terminal.")
]
# Not a Path, which would remove a slash from `https://`. Like one, it may be `-`.
FileOrPattern = Annotated[str | None, Parameter(allow_leading_hyphen=True, metavar="PATH")]
Flag = Annotated[bool, Parameter(show_default=False)]
AsJson = Annotated[Flag, Parameter(name="--json", help="Print the result as JSON.")]
Detach = Annotated[Flag, Parameter(help="Return as soon as the Slurm jobs are submitted.")]
Reason = Annotated[str | None, Parameter(help="Why; goes into the registry's log.")]
Force = Annotated[Flag, Parameter(help="Ignore the verdict. Requires --reason; both go into the registry's log.")]
ModelName = Annotated[
    str,
    Parameter(
        help="ORG/NAME on the hub, a folder of a model or run, a .gguf file, pypi:PACKAGE or a registered NAME@ALIAS."
    ),
]
ServedModels = Annotated[
    str, Parameter(help="A registered NAME@ALIAS or NAME@3, or any other model, with a name for clients: NAME=MODEL.")
]
RowValues = Annotated[
    list[str] | None, Parameter(help="COLUMN=VALUE for the prompt template or system turn; once for each column.")
]
SystemTurn = Annotated[str | None, Parameter(help="System turn to use instead of the one in training.")]
MaxNewTokens = Annotated[
    int | None,
    Parameter(
        help="Longest answer, in tokens. Default: evaluate.max_new_tokens of the recipe for a tuned model, else 256; "
        "never more than the model has positions left."
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class LaunchOptions:
    """Options that override the recipe's `launch`.

    Args:
        on: `local`: this process, whatever the recipe's `launch` says. `torchrun`: launch.processes processes on this
            machine. `slurm`: one Slurm job per stage.
        nodes: Number of Slurm nodes; the same as launch.nodes=N.
    """

    on: Literal["local", "torchrun", "slurm"] | None = None
    nodes: int | None = None

    def overrides(self) -> list[str]:
        """Return the options as overrides of the recipe; raise RecipeError if they contradict each other."""
        if self.on == "local" and self.nodes is not None:
            raise RecipeError("--nodes has no effect with --on local", code="usage", hint="leave out one of them")
        on = [f"launch.on={self.on}"] if self.on not in (None, "local") else []
        return on + ([f"launch.nodes={self.nodes}"] if self.nodes is not None else [])


@Parameter(name="*")
@dataclass(frozen=True)
class SamplingOptions:
    """Options that decide how the tokens of an answer are chosen. The default is greedy decoding.

    Args:
        temperature: 0 takes the most likely token (greedy). Above 0, tokens are sampled; 1 samples from the model's own
            distribution, and lower values favour likely tokens.
        top_k: Sample from the k most likely tokens only.
        top_p: Sample from the smallest set of tokens whose probabilities sum to at least this, such as 0.95.
        min_p: Sample from the tokens with at least this fraction of the most likely token's probability, such as 0.05.
        repetition_penalty: Above 1, tokens that the prompt or the answer contains become less likely.
        stop: A text before which the answer ends; may be given several times.
        seed: Makes sampled answers repeatable. Default: they differ each time.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: list[str] | None = None
    seed: int | None = None

    def settings(self, *, max_new_tokens: int | None, beams: int = 1, samples: int = 1) -> dict[str, Any]:
        """Return the settings of `Chatter.ask`; raise RecipeError if they contradict each other."""
        from tunesmith.inference.sampling import Sampling, check_generation_options

        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, self.seed)
        stop = self.stop or []
        check_generation_options(sampling, samples=samples, beams=beams, stop=stop, max_new_tokens=max_new_tokens)
        return {"sampling": sampling, "stop": stop, "beams": beams, "max_new_tokens": max_new_tokens}


GREEDY = SamplingOptions()
AS_IN_RECIPE = LaunchOptions()
