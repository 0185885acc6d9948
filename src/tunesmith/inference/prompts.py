"""What a model is asked: rows of a split chosen by hash, their prompts, and how answers are decoded."""

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

# Answers that nothing scores are still worth reading: how many of them are made.
UNSCORED_ANSWERS = 20


@dataclass(frozen=True, slots=True)
class Prompts:
    """The same for every model that is compared: rows, prompts, decoding and limits. `digest` stands for all of it.

    `texts` are the prompts as people read them.
    """

    examples: tuple[Example, ...]
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    decoder_start_ids: tuple[int, ...] = ()
    beams: int = 1

    @property
    def digest(self) -> str:
        """Return one digest of everything that models must have in common to be compared."""
        ids = [e.id for e in self.examples]
        return digest_of(
            [ids, self.prompts, self.decoder_start_ids, self.stop_ids, self.max_new_tokens, f"beams {self.beams}"]
        )

    def fits(self, index: int, positions: int) -> bool:
        """Say whether a model that knows so many positions can read a prompt and write an answer of any length."""
        read, written = len(self.prompts[index]), len(self.decoder_start_ids) + self.max_new_tokens
        return max(read, written) <= positions if self.decoder_start_ids else read + written <= positions


def read_selected_rows(run: RunDir, split: str, count: int, seed: int) -> tuple[list[Example], list[int]]:
    """Return `count` examples of a split, always the same ones, and their places in its token file."""
    return select_rows([Example.from_json(line) for line in read_jsonl(run.examples(split))], count, seed)


def select_rows(everything: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[int]]:
    """Return `count` of a split's examples, chosen by hash, and their places among them."""
    chosen = choose_by_hash([e.id for e in everything], count, seed)
    first = {e.id: place for place, e in reversed(list(enumerate(everything))) if e.id in chosen}
    places = sorted(first.values())  # equal rows are asked about once
    return [everything[place] for place in places], places


def rows_to_answer(recipe: Recipe) -> dict[str, int]:
    """Return the splits whose rows are answered for a metric, and how many rows of each."""
    found = {"valid": recipe.train.valid_rows} if recipe.train.valid_metrics else {}
    return {**found, "test": recipe.evaluate.rows} if answer_metrics(recipe.evaluate.metrics) else found


def build_prompts(examples: Sequence[Example], recipe: Recipe, task: Task, tokenizer: TokenizerAdapter) -> Prompts:
    """Return what a model is asked about some rows, its answers decoded as the recipe's `evaluate` says."""
    prompts = tuple(tuple(task.encode_prompt(e.turns)) for e in examples)
    texts = tuple(_text(e, ids, recipe, tokenizer) for e, ids in zip(examples, prompts, strict=True))
    settings = recipe.evaluate
    return Prompts(
        tuple(examples), prompts, texts, task.stop_ids, settings.max_new_tokens, task.decoder_prefix_ids, settings.beams
    )


def _text(example: Example, ids: Sequence[int], recipe: Recipe, tokenizer: TokenizerAdapter) -> str:
    """Return a prompt as people read it: the turns, or the beginning of a document."""
    if isinstance(recipe.data, TextData):
        return tokenizer.decode(ids)
    rows_to_answer = example.turns[:-1]
    return "\n\n".join(
        turn.text if len(rows_to_answer) == 1 else f"{turn.role}: {turn.text}" for turn in rows_to_answer
    )
