"""The prompts that a model answers: rows selected by hash, their ids, and the decoding options."""

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.core.files import digest_of
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.records import Example
from tunesmith.core.rundir import RunDir
from tunesmith.data.split import choose_by_hash
from tunesmith.recipe.schema import Recipe, TextData
from tunesmith.scoring.metrics import answer_metrics
from tunesmith.tasks.base import Task
from tunesmith.tasks.tokenizer import TokenizerAdapter

# The number of answers that are generated for reading if no metric scores answers.
UNSCORED_ANSWERS = 20


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts and decoding options, which all compared models share; `digest` identifies them.

    Attributes:
        examples: the rows.
        prompts: the ids of each prompt.
        texts: the prompts as text, for people.
        stop_ids: ids that end an answer.
        max_new_tokens: the limit of an answer.
        decoder_prefix_ids: ids that the decoder of an encoder-decoder model continues.
        beams: width of the beam search; 1 means no beam search.
    """

    examples: tuple[Example, ...]
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    decoder_prefix_ids: tuple[int, ...] = ()
    beams: int = 1

    @property
    def digest(self) -> str:
        """A digest of everything that compared models must share."""
        ids = [example.id for example in self.examples]
        limits = (self.stop_ids, self.max_new_tokens, f"beams {self.beams}")
        return digest_of([ids, self.prompts, self.decoder_prefix_ids, *limits])

    def fits(self, index: int, positions: int) -> bool:
        """Whether a prompt and its longest answer fit in the model's positions."""
        read, written = len(self.prompts[index]), len(self.decoder_prefix_ids) + self.max_new_tokens
        return max(read, written) <= positions if self.decoder_prefix_ids else read + written <= positions


def read_selected_rows(run: RunDir, split: str, count: int, seed: int) -> tuple[list[Example], list[int]]:
    """Return `count` examples of a prepared split, selected by hash, and their indices in its token file."""
    return select_rows([Example.from_json(line) for line in read_jsonl(run.examples(split))], count, seed)


def select_rows(examples: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[int]]:
    """Return `count` of a split's examples, selected by hash, and their indices; equal rows are returned once."""
    chosen = choose_by_hash([example.id for example in examples], count, seed)
    first = {example.id: place for place, example in reversed(list(enumerate(examples))) if example.id in chosen}
    places = sorted(first.values())
    return [examples[place] for place in places], places


def rows_to_answer(recipe: Recipe) -> dict[str, int]:
    """Return the number of rows to answer of each split that has a metric on answers."""
    counts = {"valid": recipe.train.valid_rows} if recipe.train.valid_metrics else {}
    return {**counts, "test": recipe.evaluate.rows} if answer_metrics(recipe.evaluate.metrics) else counts


def build_prompts(examples: Sequence[Example], recipe: Recipe, task: Task, tokenizer: TokenizerAdapter) -> Prompts:
    """Return the prompts of some rows, with the decoding options of the recipe's `evaluate`."""
    prompts = tuple(tuple(task.encode_prompt(example.turns)) for example in examples)
    texts = tuple(_text(example, ids, recipe, tokenizer) for example, ids in zip(examples, prompts, strict=True))
    settings = recipe.evaluate
    return Prompts(
        tuple(examples), prompts, texts, task.stop_ids, settings.max_new_tokens, task.decoder_prefix_ids, settings.beams
    )


def _text(example: Example, ids: Sequence[int], recipe: Recipe, tokenizer: TokenizerAdapter) -> str:
    """Return a prompt as text: its turns, or the beginning of a document."""
    if isinstance(recipe.data, TextData):
        return tokenizer.decode(ids)
    turns = example.turns[:-1]
    return "\n\n".join(turn.text if len(turns) == 1 else f"{turn.role}: {turn.text}" for turn in turns)
