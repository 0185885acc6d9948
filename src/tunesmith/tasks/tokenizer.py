"""The tokenizer and its chat template.

Unlike in transformers, text from users and datasets is never encoded to a control token.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.cached_encoder import CachedEncoder, EncodedText
from tunesmith.tasks.chat_template import ChatTemplate
from tunesmith.tasks.rename_tokens import rename_tokens
from tunesmith.tasks.token_bytes import bytes_of_token
from tunesmith.tasks.tokenizer_files import PlainTokenizer, load_plain_tokenizer, load_with_transformers

# Added tokens that are not flagged special still steer a model if they look like markup (<think>, [INST], <|x|>). Runs
# of blanks, which some tokenizers add as tokens, do not.
_MARKUP = re.compile(r"<.+>|\[.+\]")
# Blanks that control tokens may swallow. Python counts four separators as blanks that tokenizers do not.
_BLANKS = r"[^\S\x1c-\x1f]*"
# A letter of Linear A, which is in no vocabulary.
_RARE_LETTER = "\U00010600"


class Span(NamedTuple):
    """A span of text from one source: the template, the user or the model. Other control tokens become plain text.

    Attributes:
        allowed_control_ids: ids of the control tokens that keep their function in this span.
        starts_generation: whether a model generates from here, so that no token may cross the beginning.
    """

    text: str
    allowed_control_ids: frozenset[int] = frozenset()
    starts_generation: bool = False


class Encoded(NamedTuple):
    """The ids of several spans.

    Attributes:
        ids: token ids of all spans.
        starts: index of each span's first token, and the number of tokens at the end.
        is_unchanged: whether the ids are those that the tokenizer itself gives for the whole text.
    """

    ids: list[int]
    starts: list[int]
    is_unchanged: bool


class TokenizerAdapter:
    """A tokenizer that encodes each span with only the control tokens allowed in it, and renders chat templates.

    Args:
        hf_tokenizer: a fast tokenizer of transformers, or a PlainTokenizer.
        config: the model's configuration.
        new_rows: {id of a token for which the model has no embedding row yet: ids of the tokens whose mean row its
            row starts as, or none for the mean of all rows}.
        words: tokens that text may contain like any word, although they look like markup.

    Raises:
        RecipeError: the tokenizer is not a fast one.
    """

    def __init__(
        self,
        hf_tokenizer: Any,
        config: Any = None,
        *,
        new_rows: Mapping[int, tuple[int, ...]] = {},
        words: Sequence[str] = (),
    ) -> None:
        if not getattr(hf_tokenizer, "is_fast", False):
            message = f"{type(hf_tokenizer).__name__} has no fast version, which is needed to check the trained tokens"
            raise RecipeError(message, code="slow-tokenizer", hint="use a model whose folder has a tokenizer.json")
        self._tokenizer = hf_tokenizer
        self.config = config
        self.new_rows = new_rows
        self.words = tuple(words)
        self._backend = hf_tokenizer.backend_tokenizer
        self._backend.no_truncation()  # a tokenizer.json may enable it, which would silently truncate rows
        self._backend.no_padding()
        self._added = hf_tokenizer.added_tokens_decoder
        self.eos_id: int | None = hf_tokenizer.eos_token_id
        self.has_encoder = bool(getattr(config, "is_encoder_decoder", False))
        self.decoder_start_id: int | None = getattr(config, "decoder_start_token_id", None)
        unknown = self._unknown_id()
        text_ids = {unknown, *map(self._backend.token_to_id, self.words)}
        steering = {i: token for i, token in self._added.items() if i not in text_ids}
        self.special_ids = frozenset(i for i, token in steering.items() if token.special)
        self.markup_ids = frozenset(i for i in steering if _MARKUP.fullmatch(steering[i].content)) - self.special_ids
        self.control_ids = self.special_ids | self.markup_ids
        self._encoder = CachedEncoder(self._backend, self.control_ids)
        # If untrusted text contains control tokens, those of the template get random names.
        random_part = token_hex(8)
        self._random_names = {i: f"{random_part}.{i}." for i in self.control_ids}
        self._letter = self.encode_untrusted("a")
        self.prefix_ids = self._split_at_letter(hf_tokenizer("a").input_ids)[0]
        self._last_control_ids = lru_cache(maxsize=256)(self._ids_from_last_control)

    @classmethod
    def load(cls, folder: Path, *, words: Sequence[str] = ()) -> "TokenizerAdapter":
        """Load the tokenizer of a model folder, without reading weights or running code of the model."""
        plain = load_plain_tokenizer(folder)
        return cls(plain, words=words) if plain is not None else cls(*load_with_transformers(folder), words=words)

    @property
    def new_ids(self) -> tuple[int, ...]:
        """Ids of the tokens for which the model has no embedding rows yet."""
        return tuple(self.new_rows)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None if there is no such token."""
        found: int | None = self._backend.token_to_id(token)
        return found

    @cached_property
    def hf_tokenizer(self) -> Any:
        """The tokenizer of transformers, for callers that save or change it."""
        is_plain = isinstance(self._tokenizer, PlainTokenizer)
        return load_with_transformers(self._tokenizer.folder)[0] if is_plain else self._tokenizer

    def _unknown_id(self) -> int | None:
        """Return the id for unknown characters, which controls nothing and can occur in any text.

        If the tokenizer encodes every byte there is none; a token of that name (often <|endoftext|>) has another use.
        """
        unknown: int | None = self._tokenizer.unk_token_id
        return unknown if unknown in self._backend.encode(_RARE_LETTER, add_special_tokens=False).ids else None

    def special_tokens_around(self, *, target: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the special tokens that the tokenizer adds before and after a source, or a target.

        Raises:
            RecipeError: targets need a language code, and no target language is set.
        """
        if target and getattr(self._tokenizer, "tgt_lang", "") is None:
            hint = "set src_lang and tgt_lang in its tokenizer_config.json"
            message = "the model's tokenizer has no target language"
            raise RecipeError(message, where="model.base", code="no-target-language", hint=hint)
        return self._split_at_letter((self._tokenizer(text_target="a") if target else self._tokenizer("a")).input_ids)

    def _split_at_letter(self, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids before and after the letter `a`; for almost all tokenizers, those before are [bos] or none."""
        whole, count = tuple(ids), len(self._letter)
        starts = (i for i in range(len(whole)) if list(whole[i : i + count]) == self._letter)
        return next(((whole[:i], whole[i + count :]) for i in starts), ((), ()))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def pad_id(self) -> int:
        """Id for padding. Masks are by position, so any id works, even the end-of-text token's."""
        pad = self._tokenizer.pad_token_id
        return int(pad if pad is not None else self.eos_id if self.eos_id is not None else 0)

    @cached_property
    def digest(self) -> str:
        """Digest of everything that affects the ids of a text: vocabulary, rules, chat template."""
        return digest_of([self._backend.to_str(), self._tokenizer.chat_template, *sorted(self.words)])

    # ---- text to ids ----

    def encode(self, spans: Sequence[Span]) -> Encoded:
        """Encode spans as one text, with only those control tokens in each span that it allows.

        If no span contains a control token that it does not allow, the ids are the tokenizer's own for the whole text.
        The text is encoded in two parts only if a token would cross the beginning of a span that `starts_generation`.
        """
        encoded, edges = self._encode_joined(self._encoder, [span.text for span in spans])
        is_unchanged = _is_allowed(encoded, spans, edges)
        if not is_unchanged:
            texts = [self._use_random_names(span) for span in spans]
            encoded, edges = self._encode_joined(self._renamed_encoder, texts)
            if not _is_allowed(encoded, spans, edges):
                raise RowProblem("text cannot be encoded without control tokens", code="control-token")
        starts = [*map(encoded.tokens_before, edges[:-1]), len(encoded.ids)]
        cuts = [
            index
            for index, span in enumerate(spans)
            if index and span.starts_generation and not encoded.starts_token_at(starts[index], edges[index])
        ]
        return self._encode_separately(spans, cuts) if cuts else Encoded(encoded.ids, starts, is_unchanged)

    def encode_with_fixed_prefix(self, spans: Sequence[Span], count: int) -> Encoded:
        """Encode spans so that the first `count` of them have the same ids as without the others."""
        encoded, last_control = self.encode(spans), self._last_control_ids(spans[count - 1].text)
        end = encoded.starts[count]
        if encoded.is_unchanged and last_control:
            # Tokenizers split at control tokens first, so the ids before the last one cannot have changed.
            is_same = encoded.ids[end - len(last_control) : end] == last_control
        else:
            is_same = encoded.ids[:end] == self.encode(spans[:count]).ids
        return encoded if is_same else self._encode_separately(spans, [count])

    def _encode_separately(self, spans: Sequence[Span], cuts: Sequence[int]) -> Encoded:
        """Encode spans as several texts, cut before the spans with these indexes."""
        ids: list[int] = []
        starts: list[int] = []
        for first, last in pairwise([0, *cuts, len(spans)]):
            encoded = self.encode(spans[first:last])
            starts += [len(ids) + start for start in encoded.starts[:-1]]
            ids += encoded.ids
        return Encoded(ids, [*starts, len(ids)], is_unchanged=False)

    def _ids_from_last_control(self, text: str) -> list[int]:
        """Return the ids of a template's text, starting with its last control token; empty if it has none."""
        ids = self.encode_trusted(text)
        return ids[max((i for i, token in enumerate(ids) if token in self.control_ids), default=len(ids)) :]

    def encode_trusted(self, text: str) -> list[int]:
        """Encode text in which control tokens keep their function, such as the text of a chat template."""
        return self.encode([Span(text, self.control_ids)]).ids

    def encode_untrusted(self, text: str, *, allow_markup: bool = False) -> list[int]:
        """Encode text from a user or a dataset; control tokens in it become plain text.

        Args:
            allow_markup: keep tokens that are not flagged special (such as <think>), which answers may contain.
        """
        return self.encode([Span(text, self.markup_ids if allow_markup else frozenset())]).ids

    def find_control_token(self, text: str, *, allow_markup: bool = False) -> str | None:
        """Return the first control token that `encode_untrusted` encodes as plain text; None if there is none."""
        match = self._control_patterns[allow_markup].search(text)
        return match[0] if match else None

    @cached_property
    def _control_patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Patterns of all control tokens, and of those that are flagged special."""
        both = ({self._added[i].content for i in ids} for ids in (self.control_ids, self.special_ids))
        ordered = (sorted(map(re.escape, names), key=len, reverse=True) for names in both)
        control, special = (re.compile("|".join(names) or r"(?!)") for names in ordered)
        return control, special

    def find_stop_token(self, text: str) -> tuple[int, int] | None:
        """Return (id, end in characters) of the first special token of a template's text, or else of its markup."""
        encoded = self._encoder.encode(text)
        tokens = [(encoded.ids[i], last) for i, (_, last) in encoded.control.items()]
        candidates = (token for ids in (self.special_ids, self.markup_ids) for token in tokens if token[0] in ids)
        return next(candidates, None)

    def end_of_control_token(self, text: str, token: int) -> int:
        """Return the end in characters of the first occurrence of a control token in a template's text; 0 if none."""
        encoded = self._encoder.encode(text)
        return next((last for i, (_, last) in encoded.control.items() if encoded.ids[i] == token), 0)

    def _encode_joined(self, encoder: CachedEncoder, texts: Sequence[str]) -> tuple[EncodedText, list[int]]:
        """Encode texts as one, and return the character at which each begins as well."""
        return encoder.encode("".join(texts)), list(accumulate(map(len, texts), initial=0))

    def _use_random_names(self, span: Span) -> str:
        """Return a span's text with random names for the control tokens that it allows."""
        if not span.allowed_control_ids:
            return span.text
        pieces, position = [], 0
        encoded = self._encoder.encode(span.text)
        for i, (first, last) in encoded.control.items():
            if encoded.ids[i] in span.allowed_control_ids:
                pieces += [span.text[position:first], self._random_names[encoded.ids[i]]]
                position = last
        return "".join([*pieces, span.text[position:]])

    @cached_property
    def _renamed_encoder(self) -> CachedEncoder:
        """The tokenizer with each control token renamed to a random string, which no untrusted text can contain."""
        try:
            return CachedEncoder(rename_tokens(self._backend, self._random_names), self.control_ids)
        except ValueError as error:
            message = f"the tokenizer cannot encode control tokens in users' text as plain text: {error}"
            raise RecipeError(message, where="model.base", code="unsafe-tokenizer", hint="use another base") from error

    # ---- ids to text ----

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, including control tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token after another one, which may be a part of a character."""
        text = self.decode([*self._letter, token]).removeprefix(self.decode(self._letter))
        return bytes_of_token(self._backend.id_to_token(token) or "", text)

    def decodes_to(self, ids: Sequence[int], text: str, *, before: Sequence[int] = ()) -> bool:
        """Return whether ids decode to a text, up to differences that the tokenizer does not encode.

        Args:
            before: the id before them, if there is one.
        """
        decoded = self.decode(ids)
        if decoded == text:
            return True
        # Some decoders drop a blank at the very beginning, so also decode with a token before it.
        before = before or self._letter
        readings = (decoded, text), (self.decode([*before, *ids]), self.decode(before) + text)
        return any(self._normalize(actual) == self._normalize(expected) for actual, expected in readings)

    def _normalize(self, text: str) -> str:
        """Remove what the tokenizer does not encode: blanks that control tokens swallow, and forms of letters."""
        for token in self._added.values():
            if token.lstrip or token.rstrip:
                blanks = _BLANKS * token.lstrip, _BLANKS * token.rstrip
                text = re.sub(re.escape(token.content).join(blanks), token.content.replace("\\", r"\\"), text)
        normalizer = self._backend.normalizer
        text = str(normalizer.normalize_str(text)) if normalizer else text
        return text if self._encodes_blanks else " ".join(text.split())

    @cached_property
    def _encodes_blanks(self) -> bool:
        """Whether the tokenizer distinguishes one blank from several and from a line break; T5's does not."""
        return self.encode_untrusted("a \n a") != self.encode_untrusted("a a")

    def require_decodes(self, ids: Sequence[int], text: str, part: str, *, before: Sequence[int] = ()) -> None:
        """Raise RowProblem unless the ids of a part of a row decode to its text; `before` as in `decodes_to`."""
        if not self.decodes_to(ids, text, before=before):
            raise self.decode_problem(ids, text, part)

    def decode_problem(self, ids: Sequence[int], text: str, part: str) -> RowProblem:
        """Return the problem of a part of a row whose ids do not decode to its text."""
        hint = ""
        if any(word in text for word in self.words):
            hint = f"this tokenizer changes blanks next to added tokens; write them as in {self.decode(ids)[:80]!r}"
        reason = f"the {part}'s tokens do not decode to the {part}"
        return RowProblem(reason, repr(text[:80]), code="decode-mismatch", hint=hint)

    # ---- chat templates ----

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._tokenizer.chat_template)

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        *,
        generation: bool,
        tools: list[dict[str, Any]] | None = None,
        arguments: Mapping[str, Any] = {},
    ) -> str:
        """Return a conversation as text; see `ChatTemplate.render`."""
        template = self._tool_use_template if tools else self._chat_template
        return template.render(messages, generation=generation, tools=tools, arguments=arguments)

    def unread_by_chat_template(self, names: Iterable[str], *, with_tools: bool = False) -> list[str]:
        """Return those of some variables that the chat template never reads."""
        return (self._tool_use_template if with_tools else self._chat_template).unread(names)

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        source = self._tokenizer.chat_template
        if not isinstance(source, str):  # several templates, of which transformers chooses one
            source = self._tokenizer.get_chat_template()
        return ChatTemplate(source, self._tokenizer.special_tokens_map)

    @cached_property
    def _tool_use_template(self) -> ChatTemplate:
        """The template for conversations with tools; some models have a separate one."""
        if isinstance(self._tokenizer.chat_template, str):
            return self._chat_template
        return ChatTemplate(self._tokenizer.get_chat_template(tools=[{}]), self._tokenizer.special_tokens_map)


def _is_allowed(encoded: EncodedText, spans: Sequence[Span], edges: Sequence[int]) -> bool:
    """Return whether every control token is inside one span that allows it."""
    for i, (first, last) in encoded.control.items():
        index = bisect_right(edges, first) - 1
        if last > edges[index + 1] or encoded.ids[i] not in spans[index].allowed_control_ids:
            return False
    return True
