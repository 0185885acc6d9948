"""The verbs that ask a model: `generate` and `chat`."""

from pathlib import Path

from tunesmith.cli.app import app
from tunesmith.cli.options import GREEDILY, AsJson, ModelName, RowValues, SamplingOptions, Texts
from tunesmith.cli.output import print_json, print_result
from tunesmith.core.errors import RecipeError


@app.command
def generate(
    model: ModelName,
    *,
    prompt: Texts = None,
    row: RowValues = None,
    rows: Path | None = None,
    file: Path | None = None,
    system: str | None = None,
    max_new_tokens: int | None = None,
    beams: int = 1,
    samples: int = 1,
    sampling: SamplingOptions = GREEDILY,
    as_json: AsJson = False,
) -> None:
    """Answer prompts or rows, through the prompt template and system turn that the model was trained with.

    Args:
        prompt: fills the prompt template, if that has one column; may be given several times.
        rows: answer the rows of this data file, in any format that a recipe reads, with the columns that the model's
            recipe renames under either name. With --json each answer is one line: {id, row, prompt, prediction,
            reference, stopped, error}, which `score` reads; `reference` is left out if the row has no answer.
        file: answer the prompts of this text file, one per line; `-` is standard input.
        system: a system turn to use instead of the trained one.
        max_new_tokens: limit of an answer in tokens; by default evaluate.max_new_tokens of the recipe, if the model is
            from a run or the registry, else 256; fewer if the model has fewer positions left.
        beams: width of the beam search; 1 means no beam search.
        samples: how many answers to draw for each prompt or row. With --json each has its number as `sample`: 0, 1, ...
            With --seed 5, sample 2 is the answer that --seed 7 gives without --samples.
    """
    given = [name for name, value in (("--prompt", prompt), ("--rows", rows), ("--file", file)) if value]
    if len(given) > 1 or (rows and row):
        raise RecipeError(f"{' and '.join(given if len(given) > 1 else ['--rows', '--row'])} exclude each other")
    if not given and not row:
        raise RecipeError(
            "nothing to answer", code="usage", hint="give --prompt TEXT, --row COLUMN=VALUE or --rows FILE"
        )
    from tunesmith.cli.chat import announce, answer_row, answer_rows, answer_texts, read_prompts, read_row
    from tunesmith.inference.chatter import open_chatter
    from tunesmith.report.wording import visible

    settings = sampling.settings(max_new_tokens=max_new_tokens, beams=beams, samples=samples)
    texts = read_prompts(file) if file else list(prompt or [])
    chatter = open_chatter(model, system=system, row=read_row(row or []))
    announce(chatter, model)
    if rows:
        answers = answer_rows(chatter, rows, samples=samples, **settings)
    elif texts:
        answers = answer_texts(chatter, texts, samples=samples, **settings)
    else:
        answers = answer_row(chatter, samples=samples, **settings)
    if as_json and (rows or file):
        for one in answers:
            print_json(one, indent=None)
        return
    print_result(
        answers,
        as_json,
        lambda: "\n".join(visible(one["answer" if "answer" in one else "prediction"]) for one in answers),
    )


@app.command
def chat(
    model: ModelName,
    *,
    row: RowValues = None,
    system: str | None = None,
    max_new_tokens: int | None = None,
    sampling: SamplingOptions = GREEDILY,
) -> None:
    """Talk with a model; an empty line or Ctrl-D ends.

    Args:
        system: a system turn to use instead of the trained one.
        max_new_tokens: limit of an answer in tokens; by default evaluate.max_new_tokens of the recipe, if the model is
            from a run or the registry, else 256; fewer if the model has fewer positions left.
    """
    from tunesmith.cli.chat import announce, converse, read_row
    from tunesmith.inference.chatter import open_chatter

    settings = sampling.settings(max_new_tokens=max_new_tokens)
    chatter = open_chatter(model, system=system, row=read_row(row or []))
    announce(chatter, model)
    converse(chatter, **settings)
