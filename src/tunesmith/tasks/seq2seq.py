"""The task `seq2seq`: a source for the encoder and a target for the decoder. Only target and end token are trained on.

The tokenizer's special tokens are added to both, as in pretraining:

            encoder              decoder
    T5      source </s>          <pad> target </s>
    BART    <s> source </s>      </s> <s> target </s>
"""

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import ENCODER_IDS, TokenizedExample, Turn
from tunesmith.recipe.schema import Seq2SeqData
from tunesmith.tasks.completion import CompletionTask
from tunesmith.tasks.tokenizer import TokenizerAdapter


class Seq2SeqTask(CompletionTask):
    """A source and a target. The decoder starts from its start token and the target's prefix."""

    _data: Seq2SeqData

    def __init__(self, data: Seq2SeqData, tokenizer: TokenizerAdapter) -> None:
        super().__init__(data, tokenizer)
        self._source_prefix, self._source_suffix = tokenizer.special_tokens_around(target=False)
        target_prefix, target_suffix = tokenizer.special_tokens_around(target=True)
        end = self.stop_ids[0]
        # Tokens after the end are never generated; some tokenizers add no end at all.
        self._target_suffix = (*target_suffix[: target_suffix.index(end)], end) if end in target_suffix else (end,)
        self.decoder_prefix_ids = (_decoder_start_id(tokenizer, target_suffix, end), *target_prefix)

    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Tokenize source and target; raise RowProblem if the target's ids do not decode to the target.

        The target's prefix is trained on as well. Our generation always supplies it, but other programs may start from
        the decoder's start token alone.
        """
        target = self._tokenizer.encode_untrusted(turns[-1].text, allow_markup=True)
        self._tokenizer.require_decodes(target, turns[-1].text, "target")
        ids = (*self.decoder_prefix_ids, *target, *(self._target_suffix if self._data.train_on_end else ()))
        columns = {ENCODER_IDS: tuple(self._encode_source(turns))}
        return TokenizedExample(example_id, ids, (False,) + (True,) * (len(ids) - 1), columns)

    def truncate(self, example: TokenizedExample, max_tokens: int) -> tuple[TokenizedExample, str | None]:
        """Cut the source to `max_tokens` tokens, its suffix included, and the target to `max_target_tokens`."""
        max_target_tokens, reasons = self._data.max_target_tokens, []
        source = tuple(map(int, example.columns[ENCODER_IDS]))
        if len(source) > max_tokens:
            reasons.append(f"source longer than {max_tokens} tokens")
            columns = {**example.columns, ENCODER_IDS: tuple(self._truncate_source(source, max_tokens))}
            example = replace(example, columns=columns)
        # The decoder's start token is not part of the target.
        example, is_cut = super().truncate(example, max_target_tokens + 1)
        if is_cut:
            reasons.append(f"target longer than {max_target_tokens} tokens")
        return example, " and ".join(reasons) or None

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids for the encoder, truncated as in training if `too_long` is `truncate`."""
        source, max_tokens = self._encode_source(turns), self._data.max_tokens_per_example
        is_cut = self._data.too_long == "truncate" and len(source) > max_tokens
        return self._truncate_source(source, max_tokens) if is_cut else source

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of the decoder's ids, without its end and padding, which is also T5's start token."""
        removed = {*self.stop_ids, self._tokenizer.pad_id}
        return self._tokenizer.decode([i for i in ids if i not in removed])

    def _encode_source(self, turns: Sequence[Turn]) -> list[int]:
        source = self._tokenizer.encode_untrusted(turns[0].text)
        return [*self._source_prefix, *source, *self._source_suffix]

    def _truncate_source(self, source: Sequence[int], max_tokens: int) -> list[int]:
        return [*source[: max_tokens - len(self._source_suffix)], *self._source_suffix]


def _decoder_start_id(tokenizer: TokenizerAdapter, target_suffix: Sequence[int], end: int) -> int:
    """Return the decoder's start token: the configuration's, or the language code after the target's end (mBART)."""
    if tokenizer.decoder_start_id is not None:
        return tokenizer.decoder_start_id
    if target_suffix and target_suffix[-1] != end:
        return target_suffix[-1]
    hint = "add it to config.json: the id of the token that the decoder starts from"
    message = "the model's configuration has no decoder_start_token_id"
    raise RecipeError(message, where="model.base", code="no-decoder-start", hint=hint)
