"""Rows as the model sees them, token by token: as training reads them, and as evaluation asks and is answered.

Of a run, the rows that `prepare` wrote; of a recipe, the first rows of its source that are used.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from tunesmith.core.errors import DamagedFile, DataError, RecipeError
from tunesmith.core.jsonl import read_jsonl, whole_lines
from tunesmith.core.records import Example, TokenizedExample
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.core.suggest import did_you_mean
from tunesmith.data.process_rows import process_rows
from tunesmith.data.token_view import token_view
from tunesmith.fetch.reference import ModelFolder, resolve, resolve_base
from tunesmith.pipeline.runs import recipe_folder
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.chatml import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

Sample = dict[str, Any]
ShownStage = Literal["train", "evaluate"]
Answers = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _UsedRow:
    """A row that is used, from the source or from `prepare/`."""

    split: str
    where: str
    status: str
    example: Example
    tokens: TokenizedExample
    block: Sequence[int] | None


def inspect_rows(
    recipe_or_run: Path | str,
    overrides: Sequence[str] = (),
    *,
    rows: int = 3,
    split: str | None = None,
    stage: ShownStage = "train",
) -> list[Sample]:
    """Return the first rows of a split, each as one sample for training or as several for evaluation.

    For `train` a sample is {split, row, where, block, id, status, part, tokens, prompt_tokens}: `tokens` are {text, id,
    trained, special}, and `prompt_tokens` is how many of them a model is given to answer. A long document is a row for
    each of its blocks, and `block` says which: [2, 5] is the second of five. For `evaluate` a row is the
    sample of its prompt and, in a run that has them, of the answers of base and tuned, with {stopped, error}; `part`
    says which. A row that weights or `data.train_rows` will leave out may be among those of a recipe, because that is
    known only after reading all.

    Raises:
        RecipeError: the recipe is wrong, there is no such split, or overrides would have no effect.
        DataError: the data cannot be read or used, or the split has no rows.
        DamagedFile: what `prepare` wrote is damaged.
    """
    split = _checked(split, rows, stage)
    path = Path(recipe_or_run)
    run = RunDir(path)
    answers: Answers = {}
    if run.resolved_recipe.exists() and run.manifest("prepare"):
        if overrides:
            raise RecipeError(
                "its rows are prepared, so changes have no effect", where=str(run), hint="show the recipe instead"
            )
        tokenizer, task = _prepared_with(run)
        found = _prepared(run, split, tokenizer)
        answers = _answers(run) if stage == "evaluate" else {}
    else:
        of_run = run.resolved_recipe.exists()
        recipe = load_recipe(run.resolved_recipe if of_run else path, overrides)
        folder = run.recipe_folder if of_run else recipe_folder(path)
        tokenizer, task = _reader(recipe, resolve(recipe.model.base, relative_to=folder))
        found = _examined(recipe, folder, split, task)
    if answers:
        found = _asked(found, answers)
    samples = [
        sample
        for one in islice(found, rows)
        for sample in (_learned(one, tokenizer, task) if stage == "train" else _judged(one, tokenizer, task, answers))
    ]
    if not samples:
        raise DataError(f"there are no rows for `{split}`", where=str(path), hint="data.split says which rows go where")
    return samples


def _checked(split: str | None, rows: int, stage: ShownStage) -> str:
    """Return the split to show."""
    if rows < 1:
        raise RecipeError(f"{rows} rows cannot be shown", hint="give --rows 1 or more")
    if stage == "evaluate":
        if split not in (None, "test"):
            raise RecipeError(f"evaluation asks about rows of `test`, not of `{split}`", hint="leave --split out")
        return "test"
    if split is not None and split not in SPLITS:
        raise RecipeError(f"there is no split `{split}`", hint=did_you_mean(split, SPLITS))
    return split or "train"


def _examined(recipe: Recipe, folder: Path, split: str, task: Task) -> Iterator[_UsedRow]:
    """Yield the rows of a split from the source, reading no further than asked."""
    for found in process_rows(recipe, task, folder=folder):
        if found.entry.split == split and found.example is not None and found.tokens is not None:
            yield _UsedRow(split, found.entry.where, found.entry.status, found.example, found.tokens, found.entry.block)


def _prepared_with(run: RunDir) -> tuple[TokenizerAdapter, Task]:
    """Return the tokenizer and the task that the rows of a run were prepared with."""
    recipe = load_recipe(run.resolved_recipe)
    model = resolve_base(run, recipe.model.base)
    if model.root.tokenizer_digest() != (run.manifest("prepare") or {})["inputs"]["tokenizer"]:
        raise RecipeError(
            f"the tokenizer of `{recipe.model.base}` is not the one the rows were prepared with", where=str(run)
        )
    return _reader(recipe, model)


def _prepared(run: RunDir, split: str, tokenizer: TokenizerAdapter) -> Iterator[_UsedRow]:
    """Yield the rows of a split as they lie in `prepare/`: the very tokens that training reads."""
    from tunesmith.data.token_dataset import TokenDataset

    try:
        tokens = TokenDataset(run.tokens(split))
    except (OSError, SafetensorError) as error:
        raise DamagedFile(f"cannot be read ({error})", where=str(run.tokens(split))) from error
    # Examples and token file hold the rows of one split in the order of the ledger.
    mine = (line for line in read_jsonl(run.ledger) if line["split"] == split and line["status"] in ("kept", "cut"))
    used = ((line, time) for line in mine for time in range(line["times"]))
    for place, line in enumerate(read_jsonl(run.examples(split))):
        example, (entry, time) = Example.from_json(line), next(used, (None, 0))
        if entry is None or entry["id"] != example.id or place >= len(tokens):
            raise DamagedFile("the ledger, the examples and the tokens do not match", where=str(run.stage("prepare")))
        if time:  # a row that is used several times is shown once
            continue
        yield _UsedRow(
            split, entry["where"], entry["status"], example, tokens.example(place, example.id), entry.get("block")
        )


def _answers(run: RunDir) -> Answers:
    """Return {base or tuned: {id of the row: the answer's line}} of what has been answered so far."""
    paths = {name: run.evaluation(name) / "generations.jsonl" for name in ("base", "tuned")}
    lines = {name: [json.loads(line) for line in whole_lines(path)] for name, path in paths.items()}
    return {name: {line["id"]: line for line in found} for name, found in lines.items() if found}


def _asked(rows: Iterable[_UsedRow], answers: Answers) -> Iterator[_UsedRow]:
    """Yield the rows that were asked about, each once."""
    left = set().union(*answers.values())
    for row in rows:
        if row.example.id in left:
            left.remove(row.example.id)
            yield row


def _reader(recipe: Recipe, model: ModelFolder) -> tuple[TokenizerAdapter, Task]:
    tokenizer = load_tokenizer(model, recipe.model.chat_markup)
    return tokenizer, task_for(recipe.data, tokenizer)


def _sample(found: _UsedRow, part: str, tokens: TokenizedExample, tokenizer: TokenizerAdapter, **facts: Any) -> Sample:
    row: Sample = {"split": found.split, "row": found.example.row, "where": found.where, "id": found.example.id}
    row["block"] = list(found.block) if found.block else None
    return {**row, "status": found.status, "part": part, "tokens": token_view(tokens, tokenizer), **facts}


def _learned(found: _UsedRow, tokenizer: TokenizerAdapter, task: Task) -> Iterator[Sample]:
    """Yield a row as training reads it."""
    prompt = min(len(task.encode_prompt(found.example.turns)), len(found.tokens.prompt_ids))
    yield _sample(found, "row", found.tokens, tokenizer, prompt_tokens=prompt)


def _judged(found: _UsedRow, tokenizer: TokenizerAdapter, task: Task, answers: Answers) -> Iterator[Sample]:
    """Yield the prompt of a row as evaluation sends it, and the answers to it."""

    def read(ids: Sequence[int]) -> TokenizedExample:
        return TokenizedExample(found.example.id, tuple(ids), (False,) * len(ids))

    yield _sample(found, "prompt", read(task.encode_prompt(found.example.turns)), tokenizer)
    for name, lines in answers.items():
        if line := lines.get(found.example.id):
            yield _sample(found, name, read(line["ids"]), tokenizer, stopped=line["stopped"], error=line["error"])
