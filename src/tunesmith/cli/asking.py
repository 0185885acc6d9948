"""The verbs that ask a model: `generate` and `chat`."""

from pathlib import Path

from tunesmith.cli.app import app
from tunesmith.cli.options import AsJson, ModelName, RowValues, Texts
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
    as_json: AsJson = False,
) -> None:
    """Answer prompts or rows, through the prompt template and system turn that the model was trained with.

    Args:
        prompt: fills the prompt template, if that has one column; may be given several times.
        rows: answer the rows of this data file, in any format that a recipe reads. With --json each answer is one line:
            {id, row, prompt, prediction, reference, stopped, error}, which `score` reads; `reference` is left out if
            the row has no answer.
        file: answer the prompts of this text file, one per line; `-` is standard input.
        system: a system turn to use instead of the trained one.
        max_new_tokens: limit of an answer in tokens; by default 256, or fewer if the model has fewer positions left.
        beams: width of the beam search; 1 is greedy.
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

    texts = read_prompts(file) if file else list(prompt or [])
    chatter = open_chatter(model, system=system, row=read_row(row or []))
    announce(chatter, model)
    if rows:
        answers = answer_rows(chatter, rows, max_new_tokens=max_new_tokens, beams=beams)
    elif texts:
        answers = answer_texts(chatter, texts, max_new_tokens=max_new_tokens, beams=beams)
    else:
        answers = [answer_row(chatter, max_new_tokens=max_new_tokens, beams=beams)]
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
    model: ModelName, *, row: RowValues = None, system: str | None = None, max_new_tokens: int | None = None
) -> None:
    """Talk with a model; an empty line or Ctrl-D ends.

    Args:
        system: a system turn to use instead of the trained one.
        max_new_tokens: limit of an answer in tokens; by default 256, or fewer if the model has fewer positions left.
    """
    from tunesmith.cli.chat import announce, converse, read_row
    from tunesmith.inference.chatter import open_chatter

    chatter = open_chatter(model, system=system, row=read_row(row or []))
    announce(chatter, model)
    converse(chatter, max_new_tokens=max_new_tokens)
