"""Show rows token by token as the model sees them: as training reads them, and as evaluation prompts and answers them.

The rows of a run are those that `prepare` wrote. The rows of a recipe are the first used rows of its sources.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from tunesmith.core.errors import DamagedFile, DataError, RecipeError
from tunesmith.core.jsonl import read_growing, read_jsonl
from tunesmith.core.records import Example, TokenizedExample
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.core.suggest import did_you_mean
from tunesmith.data.process_rows import LedgerEntry, process_rows
from tunesmith.data.token_view import token_view
from tunesmith.fetch.reference import ModelFolder, resolve, resolve_base
from tunesmith.pipeline.runs import recipe_folder
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

Sample = dict[str, Any]
ShownStage = Literal["train", "evaluate"]
Answers = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _UsedRow:
    """A row that a split uses, read from a source or from `prepare/`."""

    entry: LedgerEntry
    example: Example
    tokens: TokenizedExample


def inspect_rows(
    recipe_or_run: Path | str,
    overrides: Sequence[str] = (),
    *,
    rows: int = 3,
    split: str | None = None,
    stage: ShownStage = "train",
) -> list[Sample]:
    """Return the first rows of a split as samples.

    A sample is {split, row, where, block, id, status, part, tokens}, and `tokens` is a list of {text, id, trained,
    special}. A long document has one row per block; `block` is [2, 5] for the second of five.

    For `train`, each row is one sample with `prompt_tokens`, the number of tokens that are the prompt in evaluation.
    For `evaluate`, each row is a sample of its prompt and, if the run has answers, one for each answer, with
    {stopped, error}; `part` is `prompt`, `base` or `tuned`.

    The rows of a recipe can include some that weights or `data.train_rows` will leave out: this is known only after
    all rows have been read.

    Raises:
        RecipeError: the recipe is wrong, there is no such split, or overrides would have no effect.
        DataError: the data cannot be read or used, or the split has no rows.
        DamagedFile: the files of `prepare` or the answers are damaged.
    """
    split = _require_split(split, rows, stage)
    path = Path(recipe_or_run)
    run = RunDir(path)
    answers: Answers = {}
    is_run = run.resolved_recipe.exists()
    if is_run and run.manifest("prepare"):
        if overrides:
            message = "the rows of this run are already prepared, so overrides have no effect on them"
            raise RecipeError(message, where=str(run), hint="show the recipe instead of the run", code="no-effect")
        tokenizer, task = _load_task_of_run(run)
        used = _prepared_rows(run, split)
        answers = _answers(run) if stage == "evaluate" else {}
    else:
        recipe = load_recipe(run.resolved_recipe if is_run else path, overrides)
        folder = run.recipe_folder if is_run else recipe_folder(path)
        tokenizer, task = _load_task(recipe, resolve(recipe.model.base, relative_to=folder))
        used = _source_rows(recipe, folder, split, task)
    if answers:
        used = _answered_rows(used, answers)
    samples: list[Sample] = []
    for row in islice(used, rows):
        if stage == "train":
            samples.append(_training_sample(row, tokenizer, task))
        else:
            samples += _evaluation_samples(row, tokenizer, task, answers)
    if not samples:
        raise DataError(f"there are no rows in `{split}`", where=str(path), hint="change data.split", code="no-rows")
    return samples


def _require_split(split: str | None, rows: int, stage: ShownStage) -> str:
    """Return the split to show; raise RecipeError if the options are wrong."""
    if rows < 1:
        raise RecipeError(f"{rows} rows cannot be shown", hint="use --rows 1 or more", code="usage")
    if stage == "evaluate":
        if split not in (None, "test"):
            raise RecipeError(f"evaluation uses the split `test`, not `{split}`", hint="remove --split", code="usage")
        return "test"
    if split is not None and split not in SPLITS:
        raise RecipeError(f"there is no split `{split}`", hint=did_you_mean(split, SPLITS), code="usage")
    return split or "train"


def _source_rows(recipe: Recipe, folder: Path, split: str, task: Task) -> Iterator[_UsedRow]:
    """Yield the rows of a split from the sources, reading no further than needed."""
    for row in process_rows(recipe, task, folder=folder):
        if row.entry.split == split and row.example is not None and row.tokens is not None:
            yield _UsedRow(row.entry, row.example, row.tokens)


def _load_task_of_run(run: RunDir) -> tuple[TokenizerAdapter, Task]:
    """Return the tokenizer and the task with which the rows of a run were prepared."""
    recipe = load_recipe(run.resolved_recipe)
    model = resolve_base(run, recipe.model.base)
    if model.root.tokenizer_digest() != (run.manifest("prepare") or {})["inputs"]["tokenizer"]:
        message = f"the tokenizer of `{recipe.model.base}` has changed since the rows were prepared"
        hint = "restore the tokenizer, or show the recipe instead of the run"
        raise RecipeError(message, where=str(run), hint=hint, code="inputs-changed")
    return _load_task(recipe, model)


def _prepared_rows(run: RunDir, split: str) -> Iterator[_UsedRow]:
    """Yield the rows of a split from `prepare/`, with the tokens that training reads."""
    from tunesmith.data.token_dataset import TokenDataset

    try:
        tokens = TokenDataset(run.tokens(split))
    except (OSError, SafetensorError) as error:
        raise DamagedFile(f"cannot be read ({error})", where=str(run.tokens(split))) from error
    # The examples and the tokens of a split are in the order of the ledger.
    entries = (entry for entry in map(LedgerEntry.from_json, read_jsonl(run.ledger)) if entry.split == split)
    uses = ((entry, use) for entry in entries for use in range(entry.times))
    for place, line in enumerate(read_jsonl(run.examples(split))):
        example, (entry, use) = Example.from_json(line), next(uses, (None, 0))
        if entry is None or entry.id != example.id or place >= len(tokens):
            message, hint = "the ledger, the examples and the tokens do not match", "delete this folder, and run again"
            raise DamagedFile(message, where=str(run.stage("prepare")), hint=hint)
        if not use:  # a row that is used several times is shown once
            yield _UsedRow(entry, example, tokens.example(place, example.id))


def _answers(run: RunDir) -> Answers:
    """Return the answers so far: {base or tuned: {id of the row: line of `generations.jsonl`}}.

    Of several samples of a row, it is the first.
    """
    paths = {name: run.evaluation(name) / "generations.jsonl" for name in ("base", "tuned")}
    first = {name: [a for a in read_growing(path) if a.get("sample", 1) == 1] for name, path in paths.items()}
    return {name: {answer["id"]: answer for answer in answers} for name, answers in first.items() if answers}


def _answered_rows(rows: Iterable[_UsedRow], answers: Answers) -> Iterator[_UsedRow]:
    """Yield the rows that have an answer, each once."""
    pending = set().union(*answers.values())
    for row in rows:
        if row.example.id in pending:
            pending.remove(row.example.id)
            yield row


def _load_task(recipe: Recipe, model: ModelFolder) -> tuple[TokenizerAdapter, Task]:
    tokenizer = load_tokenizer(model, recipe.model)
    return tokenizer, task_for(recipe.data, tokenizer)


def _sample(row: _UsedRow, part: str, tokens: TokenizedExample, tokenizer: TokenizerAdapter, **fields: Any) -> Sample:
    entry = row.entry
    return {
        "split": entry.split, "row": row.example.row, "where": entry.where, "id": entry.id,
        "block": list(entry.block) if entry.block else None, "status": entry.status, "part": part,
        "tokens": token_view(tokens, tokenizer), **fields,
    }  # fmt: skip


def _training_sample(row: _UsedRow, tokenizer: TokenizerAdapter, task: Task) -> Sample:
    prompt_tokens = min(len(task.encode_prompt(row.example.turns)), len(row.tokens.prompt_ids))
    return _sample(row, "row", row.tokens, tokenizer, prompt_tokens=prompt_tokens)


def _evaluation_samples(row: _UsedRow, tokenizer: TokenizerAdapter, task: Task, answers: Answers) -> Iterator[Sample]:
    """Yield the prompt of a row, and the answers to it."""

    def untrained(ids: Sequence[int]) -> TokenizedExample:
        return TokenizedExample(row.example.id, tuple(ids), (False,) * len(ids))

    yield _sample(row, "prompt", untrained(task.encode_prompt(row.example.turns)), tokenizer)
    for name, lines in answers.items():
        if line := lines.get(row.example.id):
            yield _sample(row, name, untrained(line["ids"]), tokenizer, stopped=line["stopped"], error=line["error"])
