"""The commands that judge models: `compare`, `score` and `verdict`."""

from pathlib import Path
from shlex import quote
from typing import Annotated

from cyclopts import Parameter

from tunesmith.cli.app import JUDGE, command
from tunesmith.cli.options import AsJson, Flag
from tunesmith.cli.output import print_result
from tunesmith.core.errors import RecipeError
from tunesmith.core.rundir import RunDir


@command(JUDGE)
def compare(
    model: Annotated[str, Parameter(help="The folder of a run, or any model if another one follows.")],
    /,
    *others: Annotated[str, Parameter(help="Runs and models to compare it with, or https://HOST/v1#MODEL.")],
    on: Path | None = None,
    rows: int = 10,
    html: Flag = False,
    as_json: AsJson = False,
) -> None:
    """Show a run's verdict with the answers of base and tuned, or compare several runs and models.

    Several are compared pairwise on the test rows of one run, with its metrics and limits. Runs with the same rows are
    compared by their stored scores; other models answer the rows. The key of an endpoint is read from OPENAI_API_KEY.

    Args:
        on: The run whose test rows and metrics count. Default: the first evaluated run among them.
        rows: Number of answers.
        html: Write the run's report again, or a page of the comparison to the run whose rows count; print its path.

    Examples:
        tunesmith compare runs/my/ID
        tunesmith compare runs/my/ID viggo@staging https://api.example.com/v1#large
    """
    if rows < 0:
        raise RecipeError(f"{rows} rows cannot be shown", code="usage", hint="use --rows 0 or more")
    if others:
        from tunesmith.evaluate.comparison import compare_references

        result = compare_references([model, *others], on)
        if html:
            from tunesmith.report.comparison_page import write_comparison

            page = RunDir(result.run).comparison_page
            write_comparison(result, page)
            print(page)
            return
        print_result(result.to_json(rows) if as_json else None, as_json, lambda: result.to_text(rows))
        return
    if on is not None:
        raise RecipeError("--on has no effect on one run", code="usage", hint="name the models to compare it with")
    from tunesmith.core.verdict_reader import read_verdict

    folder = RunDir.existing(model)
    if html:
        from tunesmith.report.render import write_report

        print(write_report(folder))
        return
    if folder.manifest("evaluate") is None:
        hint = f"tunesmith evaluate {quote(model)}"
        raise RecipeError("has not been evaluated", where=model, code="not-evaluated", hint=hint)
    from tunesmith.report.text import side_by_side

    print_result(read_verdict(folder.verdict).to_json(), as_json, lambda: side_by_side(folder, rows))


@command(JUDGE)
def score(
    file: Annotated[Path, Parameter(help='JSONL file of {"prediction", "reference"}, from any system.')],
    /,
    *,
    metrics: str = "rouge,exact_match",
    database: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Score answers against references, without a recipe.

    Args:
        metrics: Names, separated by commas; docs/metrics.md lists them. A metric of your own is `module:function`,
            which is also looked for in the current folder; with a parameter `rows` it gets the lines of the file.
        database: SQLite file for the metric `execution`.

    Examples:
        tunesmith score answers.jsonl
        tunesmith score answers.jsonl --metrics execution --database shop.sqlite
    """
    from tunesmith.scoring.standalone import score_file, score_text

    result = score_file(file, [name.strip() for name in metrics.split(",")], database=database, folder=Path.cwd())
    print_result(result, as_json, lambda: score_text(result))


@command(JUDGE)
def verdict(
    base: Annotated[Path, Parameter(help='JSONL file with one {"id"?, "group"?, METRIC: value} per line.')],
    tuned: Annotated[Path, Parameter(help="The same rows with the other system's scores.")],
    /,
    *,
    metric: str | None = None,
    higher_is_better: Annotated[bool | None, Parameter(negative="--lower-is-better")] = None,
    min_gain: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two systems' scores row by row: better, not better, or cannot tell.

    `compare` does this for runs and models.

    Args:
        metric: The metric to compare; required if the rows have several.
        higher_is_better: Direction of the metric. Default: that of the built-in metric, and higher for all others.
        min_gain: The confidence interval must lie above this gain; negative for "not worse by more than".
        confidence: Level of the confidence interval.
        seed: Seed of the bootstrap.

    Examples:
        tunesmith verdict base.jsonl tuned.jsonl --metric rougeL
        tunesmith verdict old.jsonl new.jsonl --metric loss --lower-is-better
    """
    from tunesmith.scoring.row_scores import VerdictSettings
    from tunesmith.scoring.standalone import compare_files, verdict_text

    settings = VerdictSettings(min_gain, confidence, seed)
    result = compare_files(base, tuned, metric, settings, higher_is_better=higher_is_better)
    print_result(result.to_json(), as_json, lambda: verdict_text(result))
