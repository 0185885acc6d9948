"""The commands that use a model: `generate` and `chat`."""

from pathlib import Path

from tunesmith.cli.app import MODELS, command
from tunesmith.cli.options import GREEDY, AsJson, MaxNewTokens, ModelName, RowValues, SamplingOptions, SystemTurn
from tunesmith.cli.output import print_json, print_result
from tunesmith.core.errors import RecipeError


@command(MODELS)
def generate(
    model: ModelName,
    /,
    *,
    prompt: list[str] | None = None,
    row: RowValues = None,
    rows: Path | None = None,
    file: Path | None = None,
    system: SystemTurn = None,
    max_new_tokens: MaxNewTokens = None,
    beams: int = 1,
    samples: int = 1,
    sampling: SamplingOptions = GREEDY,
    as_json: AsJson = False,
) -> None:
    """Answer prompts or rows, with the prompt template and system turn of training.

    Args:
        prompt: A text for the prompt template, if that has one column; may be given several times.
        rows: Answer each row of this data file, in any format that a recipe reads; columns that the model's recipe
            renames may have either name. With --json, one line per answer: {id, row, prompt, prediction, reference,
            stopped, error}, which `score` reads; `reference` is left out if the row has no answer.
        file: Answer each line of this text file; `-` is standard input.
        beams: Width of the beam search; 1 is no beam search.
        samples: Number of answers to sample for each prompt or row, numbered from 0 as `sample` in the JSON. Sample i
            uses the seed --seed + i.

    Examples:
        tunesmith generate viggo@staging --prompt "name(Portal), genre(puzzle)"
        tunesmith generate runs/my/ID --rows test.csv --json > answers.jsonl
    """
    inputs = [name for name, value in (("--prompt", prompt), ("--rows", rows), ("--file", file)) if value]
    if len(inputs) > 1 or (rows and row):
        conflict = inputs if len(inputs) > 1 else ["--rows", "--row"]
        raise RecipeError(f"{' and '.join(conflict)} exclude each other", code="usage", hint="pass only one of them")
    if not inputs and not row:
        hint = "pass --prompt TEXT, --row COLUMN=VALUE or --rows FILE"
        raise RecipeError("there is no prompt to answer", code="usage", hint=hint)
    from tunesmith.cli.answers import answer_rows, answer_texts, note_missing_template, read_prompts, read_row
    from tunesmith.inference.chatter import open_chatter
    from tunesmith.report.wording import visible

    settings = sampling.settings(max_new_tokens=max_new_tokens, beams=beams, samples=samples)
    texts = read_prompts(file) if file else prompt or []
    chatter = open_chatter(model, system=system, row=read_row(row or []))
    note_missing_template(chatter, model)
    if rows:
        answers = answer_rows(chatter, rows, samples=samples, **settings)
    else:
        answers = answer_texts(chatter, texts, samples=samples, **settings)
    if as_json and (rows or file):
        for answer in answers:
            print_json(answer, indent=None)
        return
    key = "prediction" if rows else "answer"
    print_result(answers, as_json, lambda: "\n".join(visible(answer[key]) for answer in answers))


@command(MODELS)
def chat(
    model: ModelName,
    /,
    *,
    row: RowValues = None,
    system: SystemTurn = None,
    max_new_tokens: MaxNewTokens = None,
    sampling: SamplingOptions = GREEDY,
) -> None:
    """Talk with a model. An empty line or Ctrl-D ends the conversation.

    Examples:
        tunesmith chat viggo@staging
        tunesmith chat org/model --temperature 0.7 --top-p 0.9
    """
    from tunesmith.cli.answers import converse, note_missing_template, read_row
    from tunesmith.inference.chatter import open_chatter

    settings = sampling.settings(max_new_tokens=max_new_tokens)
    chatter = open_chatter(model, system=system, row=read_row(row or []))
    note_missing_template(chatter, model)
    converse(chatter, **settings)
