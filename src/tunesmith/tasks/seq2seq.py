"""A source that the encoder reads and a target that the decoder writes; only the target and its end are learned.

Around both stand the tokenizer's own special tokens, as when the model was pretrained:

            encoder              decoder
    T5      source </s>          <pad> target </s>
    BART    <s> source </s>      </s> <s> target </s>
"""

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import ENCODER_IDS, TokenizedExample, Turn
from tunesmith.recipe.schema import Seq2SeqData
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.prompt_response import PairTask
from tunesmith.tasks.text import require_eos_id
from tunesmith.tasks.tokenizer import TokenizerAdapter


class Seq2SeqTask(PairTask):
    """Source and target are encoded apart; an answer goes on from the decoder's start and what opens every target."""

    _data: Seq2SeqData

    def __init__(self, data: Seq2SeqData, tokenizer: TokenizerAdapter) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._around_source = tokenizer.special_tokens_around(target=False)
        opening, closing = tokenizer.special_tokens_around(target=True)
        end = require_eos_id(tokenizer)
        # Nothing after the end could ever be used, and some tokenizers write no end at all.
        self._closing = (*closing[: closing.index(end)], end) if end in closing else (end,)
        self.stop_ids = (end,)
        self.decoder_prefix_ids = (_start(tokenizer, closing, end), *opening)

    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Return the encoder's ids and the decoder's; the target is proved to decode to what the row says.

        What opens a target is learned too, though answers are always given it, so that a saved model also begins
        rightly where somebody else only gives it the decoder's start.
        """
        target = self._tokenizer.encode_untrusted(turns[-1].text, allow_markup=True)
        if not self._tokenizer.decodes_to(target, turns[-1].text):
            raise RowProblem("the target's tokens do not decode to the target", repr(turns[-1].text[:80]))
        ids = (*self.decoder_prefix_ids, *target, *self._closing)
        return TokenizedExample(
            example_id, ids, (False,) + (True,) * (len(ids) - 1), {ENCODER_IDS: tuple(self._source(turns))}
        )

    def truncate(self, tokens: TokenizedExample, most: int) -> tuple[TokenizedExample, str | None]:
        """Cut the source to `most` tokens before what closes it, and the target at its end."""
        most_target, reasons = self._data.max_target_tokens, []
        source = self._source_of(tokens)
        if len(source) > most:
            reasons.append(f"source longer than {most} tokens")
            tokens = replace(tokens, columns={**tokens.columns, ENCODER_IDS: tuple(self._cut(source, most))})
        if len(tokens.input_ids) - 1 > most_target:  # the decoder's start is no part of the target
            reasons.append(f"target longer than {most_target} tokens")
            ids, trained = tokens.input_ids[: most_target + 1], tokens.trained[: most_target + 1]
            tokens = replace(tokens, input_ids=ids, trained=trained)
        return tokens, " and ".join(reasons) or None

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids that the encoder reads, cut as in training where the recipe says so."""
        source, most = self._source(turns), self._data.max_tokens_per_example
        return self._cut(source, most) if self._data.too_long == "truncate" and len(source) > most else source

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return what the decoder wrote as text. Padding, which T5 also starts from, says nothing."""
        silent = {*self.stop_ids, self._tokenizer.pad_id}
        return self._tokenizer.decode([i for i in ids if i not in silent])

    def _source(self, turns: Sequence[Turn]) -> list[int]:
        opening, closing = self._around_source
        return [*opening, *self._tokenizer.encode_untrusted(turns[0].text), *closing]

    def _source_of(self, tokens: TokenizedExample) -> tuple[int, ...]:
        return tuple(map(int, tokens.columns[ENCODER_IDS]))

    def _cut(self, source: Sequence[int], most: int) -> list[int]:
        closing = self._around_source[1]
        return [*source[: most - len(closing)], *closing]


def _start(tokenizer: TokenizerAdapter, closing: Sequence[int], end: int) -> int:
    """Return the id that the decoder starts from: the configuration's, or a language code, as for mBART."""
    if tokenizer.decoder_start_id is not None:
        return tokenizer.decoder_start_id
    if closing and closing[-1] != end:
        return closing[-1]
    raise RecipeError(
        "the model's configuration has no decoder_start_token_id, so it is not known what its decoder starts from",
        where="model.base",
    )
