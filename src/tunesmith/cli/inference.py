"""The commands that use a model: `generate` and `chat`."""

from pathlib import Path

from tunesmith.cli.app import MODELS, command
from tunesmith.cli.options import (
    GREEDY,
    AsJson,
    FileOrPattern,
    Flag,
    MaxNewTokens,
    ModelName,
    RowValues,
    SamplingOptions,
    SystemTurn,
)
from tunesmith.cli.output import print_json, print_result
from tunesmith.core.errors import RecipeError


@command(MODELS)
def generate(
    model: ModelName,
    /,
    *,
    prompt: list[str] | None = None,
    row: RowValues = None,
    file: FileOrPattern = None,
    out: Path | None = None,
    restart: Flag = False,
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
        file: Answer each row of this data file, pattern, folder or address, as `data.source.file` of a recipe reads it,
            or each line of a .txt file; `-` is the lines of standard input. Columns that the model's recipe renames may
            have either name. With --json, one line per answer: {id, row, prompt, prediction, reference, stopped,
            error}, which `score` reads; `reference` is left out if the row has no answer.
        out: Append the answers to --file to this JSONL file as they finish, in about the order of the rows. After an
            interruption, the same command continues.
        restart: Discard the answers in --out, and begin again.
        beams: Width of the beam search; 1 is no beam search.
        samples: Number of answers to sample for each prompt or row, numbered from 0 as `sample` in the JSON. Sample i
            uses the seed --seed + i.

    Examples:
        tunesmith generate viggo@staging --prompt "name(Portal), genre(puzzle)"
        tunesmith generate runs/my/ID --file test.csv --out answers.jsonl
    """
    _check_inputs(prompt, row, file, out, restart=restart)
    from tunesmith.cli.answers import answer_file, answer_file_to, answer_texts, note_missing_template, read_row
    from tunesmith.inference.chatter import open_chatter
    from tunesmith.report.wording import visible

    settings = {**sampling.settings(max_new_tokens=max_new_tokens, beams=beams, samples=samples), "samples": samples}
    chatter = open_chatter(model, system=system, row=read_row(row or []))
    note_missing_template(chatter, model)
    if file and out:
        result = answer_file_to(out, chatter, file, restart=restart, **settings)
        failed = "; {failed:,} have an `error` instead" if result["failed"] else ""
        print_result(result, as_json, ("{answers:,} answers in {out}" + failed).format(**result))
        return
    answers = answer_file(chatter, file, **settings) if file else answer_texts(chatter, prompt or [], **settings)
    if as_json and file:
        for answer in answers:
            print_json(answer, indent=None)
        return
    key = "prediction" if file else "answer"
    print_result(answers, as_json, lambda: "\n".join(visible(answer[key]) for answer in answers))


def _check_inputs(
    prompt: list[str] | None, row: list[str] | None, file: str | None, out: Path | None, *, restart: bool
) -> None:
    """Raise RecipeError unless there is one kind of prompts, and options of a file come with one."""
    if prompt and file:
        raise RecipeError("--prompt and --file exclude each other", code="usage", hint="pass only one of them")
    if file and row:
        from tunesmith.inference.file_prompts import is_lines

        if not is_lines(file):
            hint = "let the file have these columns"
            raise RecipeError("--row and a data file exclude each other", code="usage", hint=hint)
    if not (prompt or row or file):
        hint = "pass --prompt TEXT, --row COLUMN=VALUE or --file FILE"
        raise RecipeError("there is no prompt to answer", code="usage", hint=hint)
    if out and (not file or file == "-"):
        hint = "write the prompts to a file, so that an interrupted command can continue"
        raise RecipeError("--out needs --file with the name of a file", code="usage", hint=hint)
    if restart and not out:
        raise RecipeError("--restart has no effect without --out", code="usage", hint="leave it out")


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
