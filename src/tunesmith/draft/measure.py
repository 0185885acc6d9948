"""Process a sample of rows as `prepare` will, to know their lengths, their answers and which cannot be used."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tunesmith.core.errors import DataError
from tunesmith.data.process_rows import ProcessedRow, process_row
from tunesmith.data.sources import Row
from tunesmith.data.split import content_hash
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.chatml import CHATML_TEMPLATE, CHATML_TOKENS
from tunesmith.tasks.tokenizer import TokenizerAdapter
from tunesmith.tasks.tokenizer_files import PlainTokenizer

MAX_MEASURED = 2_000
"""Rows that are tokenized."""

BYTES_PER_TOKEN = 3.5
"""A usual figure for English text; used if the model's tokenizer is not on this machine."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of processing a sample of rows.

    Attributes:
        rows: the number of processed rows, without those that a filter leaves out.
        lengths: the tokens of each usable row, sorted.
        answer_lengths: the tokens of each row's last answer, sorted.
        answers: the text of each row's last answer.
        prompts: the text of each row before it.
        contents: the hash of each row's texts, equal for duplicates.
        groups: the group of each row, from which its split follows.
        splits: the splits of the rows, if a column holds them.
        problems: the number of unusable rows by reason.
    """

    rows: int
    lengths: list[int]
    answer_lengths: list[int]
    answers: list[str]
    prompts: list[str]
    contents: list[str]
    groups: list[str]
    splits: Counter[str]
    problems: Counter[str]


def measure(recipe: Recipe, rows: Sequence[Row], tokenizer: TokenizerAdapter | None) -> Measured:
    """Process evenly spaced rows.

    Args:
        recipe: a recipe that neither cuts nor drops long rows.
        tokenizer: the model's; None estimates tokens from the length of the text.

    Raises:
        DataError: more than half of the rows cannot be used.
        RecipeError: the model does not support the task.
    """
    adapter, per_token = (tokenizer, 1.0) if tokenizer else (byte_tokenizer(), BYTES_PER_TOKEN)
    task = task_for(recipe.data, adapter)
    step = max(1, -(-len(rows) // MAX_MEASURED))
    processed = [(row, process_row(recipe, task, row)[0]) for row in rows[::step]]
    tried = [(row, result) for row, result in processed if result.entry.status != "filtered"]
    kept = [result for _, result in tried if result.example is not None]
    problems = Counter(result.entry.reason or "" for _, result in tried if result.example is None)
    if len(kept) * 2 < len(tried) or not kept:
        raise _unusable([(row, result) for row, result in tried if result.example is None], problems, len(tried))
    turns = [result.row_turns for result in kept]
    return Measured(
        len(tried),
        sorted(round(result.tokens.length / per_token) for result in kept if result.tokens),
        sorted(round(_answer_length(result) / per_token) for result in kept),
        [task.reference(each) for each in turns],
        ["\n".join(turn.text for turn in each[:-1]) for each in turns],
        [content_hash([turn.full_text for turn in each]) for each in turns],
        [result.example.group for result in kept if result.example],
        Counter(str(result.entry.split) for result in kept),
        problems,
    )


def _answer_length(result: ProcessedRow) -> int:
    """Return the number of tokens of a row's last answer: of the last trained ones."""
    trained = list(result.tokens.trained) if result.tokens else []
    while trained and not trained[-1]:
        trained.pop()
    return sum(1 for _ in takewhile(bool, reversed(trained)))


def _unusable(failed: Sequence[tuple[Row, ProcessedRow]], problems: Counter[str], count: int) -> DataError:
    [(reason, _)] = problems.most_common(1)
    row, first = next(pair for pair in failed if pair[1].entry.reason == reason)
    detail = f" ({first.notes.detail})" if first.notes.detail else ""
    problem = f"{problems.total():,} of {count:,} rows cannot be used, most of them because: {reason}{detail}"
    return DataError(problem, where=row.where, hint=first.notes.hint or "correct the rows", code="too-many-dropped")


def byte_tokenizer() -> TokenizerAdapter:
    """Return a tokenizer with ChatML that has one token per byte, to process rows without a model's tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CHATML_TOKENS])
    return TokenizerAdapter(PlainTokenizer(Path(), backend, {"eos_token": CHATML_TOKENS[-1]}, CHATML_TEMPLATE))
