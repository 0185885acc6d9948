"""The prompts that a model answers: rows selected by hash, their ids, and the decoding options."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tunesmith.core.files import digest_of
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.records import Example
from tunesmith.core.rundir import RunDir
from tunesmith.data.dataset import UsedRows
from tunesmith.data.split import choose_by_hash
from tunesmith.inference.request import StopStrings
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.recipe.schema import Recipe, TextData
from tunesmith.scoring.metrics import answer_metrics
from tunesmith.tasks.base import Task
from tunesmith.tasks.tokenizer import TokenizerAdapter

# The number of answers that are generated for reading if no metric scores answers.
UNSCORED_ANSWERS = 20


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts and decoding options, which all compared models share; `digest` identifies them.

    Each row is answered `samples` times. Answers are numbered row by row: answer i is that to row i // samples.

    Attributes:
        examples: the rows.
        prompts: the ids of each prompt.
        texts: the prompts as text, for people.
        stop_ids: ids that end an answer.
        max_new_tokens: the limit of an answer.
        decoder_prefix_ids: ids that the decoder of an encoder-decoder model continues.
        beams: width of the beam search; 1 means no beam search.
        samples: the number of answers to each row.
        sampling: how each answer is sampled, in the order of answers; empty if all are greedy.
        stop_strings: texts before which an answer ends.
    """

    examples: tuple[Example, ...]
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    decoder_prefix_ids: tuple[int, ...] = ()
    beams: int = 1
    samples: int = 1
    sampling: tuple[Sampling, ...] = ()
    stop_strings: StopStrings | None = None

    @property
    def answers(self) -> int:
        """The number of answers to all rows."""
        return len(self.examples) * self.samples

    @property
    def answer_lengths(self) -> list[int]:
        """The number of tokens of the prompt of each answer."""
        return [len(prompt) for prompt in self.prompts for _ in range(self.samples)]

    @property
    def digest(self) -> str:
        """A digest of everything that compared models must share."""
        ids = [example.id for example in self.examples]
        limits = (self.stop_ids, self.max_new_tokens, f"beams {self.beams}")
        references = [example.references for example in self.examples]
        # Greedy answers keep the digest that they had before answers could be sampled, and before rows had references.
        more = {
            "samples": self.samples if self.samples > 1 else None,
            "sampling": [asdict(options) for options in self.sampling],
            "stop": self.stop_strings.texts if self.stop_strings else (),
            "references": references if any(references) else (),
        }
        changes = {name: value for name, value in more.items() if value}
        return digest_of([ids, self.prompts, self.decoder_prefix_ids, *limits, *([changes] if changes else [])])

    def fits(self, index: int, positions: int) -> bool:
        """Whether a prompt and its longest answer fit in the model's positions."""
        read, written = len(self.prompts[index]), len(self.decoder_prefix_ids) + self.max_new_tokens
        return max(read, written) <= positions if self.decoder_prefix_ids else read + written <= positions


def read_selected_rows(run: RunDir, split: str, count: int, seed: int) -> tuple[list[Example], list[int]]:
    """Return `count` examples of a prepared split, selected by hash, and their indices in its token file."""
    examples = [Example.from_json(line) for line in read_jsonl(run.examples(split))]
    places = _select_places([example.id for example in examples], count, seed)
    return [examples[place] for place in places], places


def select_examples(rows: UsedRows, split: str, count: int, seed: int) -> list[Example]:
    """Return `count` examples of a split, selected as by `read_selected_rows`, without reading those of other rows."""
    places = _select_places([str(entry.id) for entry in rows.ledger_entries(split)], count, seed)
    return [rows.example(split, place) for place in places]


def _select_places(ids: Sequence[str], count: int, seed: int) -> list[int]:
    """Return the indices of `count` of a split's rows, selected by hash; equal rows are selected once."""
    chosen = choose_by_hash(ids, count, seed)
    first = {id_: place for place, id_ in reversed(list(enumerate(ids))) if id_ in chosen}
    return sorted(first.values())


def rows_to_answer(recipe: Recipe) -> dict[str, int]:
    """Return the number of rows to answer of each split that has a metric on answers."""
    counts = {"valid": recipe.train.valid_rows} if recipe.train.valid_metrics else {}
    return {**counts, "test": recipe.evaluate.rows} if answer_metrics(recipe.evaluate.metrics) else counts


def build_prompts(
    examples: Sequence[Example], recipe: Recipe, task: Task, tokenizer: TokenizerAdapter, *, samples: int = 1
) -> Prompts:
    """Return the prompts of some rows, each to be answered `samples` times, decoded as in the recipe's `evaluate`."""
    prompts = tuple(tuple(task.encode_prompt(example.turns)) for example in examples)
    texts = tuple(_text(example, ids, recipe, tokenizer) for example, ids in zip(examples, prompts, strict=True))
    settings = recipe.evaluate
    greedy = not settings.sampling.temperature
    sampling = Sampling(**settings.sampling.model_dump(exclude={"seed"} if greedy else set()))
    numbers = range(1, samples + 1)
    return Prompts(
        tuple(examples),
        prompts,
        texts,
        task.stop_ids,
        settings.max_new_tokens,
        task.decoder_prefix_ids,
        settings.beams,
        samples,
        ()
        if sampling == GREEDY
        else tuple(sampling.of_answer(row.id, number) for row in examples for number in numbers),
        StopStrings(settings.stop, tokenizer.decode) if settings.stop else None,
    )


def _text(example: Example, ids: Sequence[int], recipe: Recipe, tokenizer: TokenizerAdapter) -> str:
    """Return a prompt as text: its turns, or the beginning of a document."""
    if isinstance(recipe.data, TextData):
        return tokenizer.decode(ids)
    turns = example.turns[:-1]
    return "\n\n".join(turn.full_text if len(turns) == 1 else f"{turn.role}: {turn.full_text}" for turn in turns)
