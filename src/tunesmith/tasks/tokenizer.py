"""The tokenizer and its chat template, with the one promise that transformers does not make by itself.

Text that came from a person is never encoded into a control token.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
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
from tunesmith.tasks.tokenizer_files import PlainTokenizer, load_plain_tokenizer

# Added tokens that are not flagged special still steer a model when they look like markup (<think>, [INST], <|x|>);
# runs of blanks, which some tokenizers add too, do not.
_MARKUP = re.compile(r"<.+>|\[.+\]")
# What control tokens may swallow; Python counts four separators as blanks that tokenizers do not.
_BLANKS = r"[^\S\x1c-\x1f]*"
# A letter of Linear A, which no vocabulary has.
_RARE = "\U00010600"


class Span(NamedTuple):
    """A stretch of text by one writer; control tokens that he may not write are only letters there.

    A part that `opens` is where a model goes on by itself, so no token may reach over its beginning.
    """

    text: str
    allowed_control_ids: frozenset[int] = frozenset()
    starts_generation: bool = False


class Encoded(NamedTuple):
    """The ids of some parts, and at which of them each part begins; the last of `starts` is the end.

    `plain` says that the ids are what the tokenizer by itself makes of the whole text.
    """

    ids: list[int]
    starts: list[int]
    plain: bool


class TokenizerAdapter:
    """Encodes what different writers wrote, decodes, and renders chat templates.

    `config` is the model's configuration; `new_ids` are tokens that the model does not know yet.
    """

    def __init__(self, hf_tokenizer: Any, config: Any = None, *, new_ids: tuple[int, ...] = ()) -> None:
        if not getattr(hf_tokenizer, "is_fast", False):
            raise RecipeError(
                f"the tokenizer {type(hf_tokenizer).__name__} has no fast version, so spans cannot be proved",
                hint="use a model whose folder has a tokenizer.json",
            )
        self._tokenizer = hf_tokenizer
        self.config = config
        self.new_ids = new_ids
        self._backend = hf_tokenizer.backend_tokenizer
        self._backend.no_truncation()  # a tokenizer.json may ask for it, and would silently cut rows
        self._backend.no_padding()
        self._added = hf_tokenizer.added_tokens_decoder
        self.eos_id: int | None = hf_tokenizer.eos_token_id
        self.has_encoder = bool(getattr(config, "is_encoder_decoder", False))
        self.decoder_start_id: int | None = getattr(config, "decoder_start_token_id", None)
        unknown = self._unknown_id()
        steering = {i: token for i, token in self._added.items() if i != unknown}
        self.special_ids = frozenset(i for i, token in steering.items() if token.special)
        self.markup_ids = frozenset(i for i in steering if _MARKUP.fullmatch(steering[i].content)) - self.special_ids
        self.control_ids = self.special_ids | self.markup_ids
        self._aware = CachedEncoder(self._backend, self.control_ids)
        # Where people's text spells control tokens, the template's bear names that nobody can know.
        secret = token_hex(8)
        self._names = {i: f"{secret}.{i}." for i in self.control_ids}
        self._letter = self.encode_untrusted("a")
        self.prefix_ids = self._around(hf_tokenizer("a").input_ids)[0]
        self._opening = lru_cache(maxsize=256)(self._opening_of)

    @classmethod
    def load(cls, folder: Path) -> "TokenizerAdapter":
        """Load the tokenizer of a model folder; no weights are read and no code of the model is run."""
        plain = load_plain_tokenizer(folder)
        return cls(plain) if plain is not None else cls(*_from_transformers(folder))

    @cached_property
    def hf_tokenizer(self) -> Any:
        """The tokenizer of transformers, for those who save it or change it."""
        return _from_transformers(self._tokenizer.folder)[0] if self._is_light else self._tokenizer

    @property
    def _is_light(self) -> bool:
        return isinstance(self._tokenizer, PlainTokenizer)

    def _unknown_id(self) -> int | None:
        """Return the id that stands for unknown characters: it steers nothing, and any text may hold one.

        Where every byte is known there is none; a token of that name (<|endoftext|>, often) then has another use.
        """
        unknown: int | None = self._tokenizer.unk_token_id
        return unknown if unknown in self._backend.encode(_RARE, add_special_tokens=False).ids else None

    def special_tokens_around(self, *, target: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the special tokens that the tokenizer puts before and after a source, or a target.

        Raises:
            RecipeError: targets begin or end with a code of their language, and none is set.
        """
        if target and getattr(self._tokenizer, "tgt_lang", "") is None:
            raise RecipeError(
                "the model's tokenizer does not say in which language targets are",
                where="model.base",
                hint="set src_lang and tgt_lang in its tokenizer_config.json",
            )
        return self._around((self._tokenizer(text_target="a") if target else self._tokenizer("a")).input_ids)

    def _around(self, framed: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what stands before and after a letter: before it, with nearly all tokenizers, [bos] or nothing."""
        whole, count = tuple(framed), len(self._letter)
        places = (i for i in range(len(whole)) if list(whole[i : i + count]) == self._letter)
        return next(((whole[:i], whole[i + count :]) for i in places), ((), ()))

    @property
    def vocab_size(self) -> int:
        """How many tokens the tokenizer knows, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def pad_id(self) -> int:
        """The id that fills up batches; masks go by position, so any id will do, eos included."""
        pad = self._tokenizer.pad_token_id
        return int(pad if pad is not None else self.eos_id if self.eos_id is not None else 0)

    @cached_property
    def digest(self) -> str:
        """Digest of all that decides how text becomes ids: vocabulary, rules, chat template."""
        return digest_of([self._backend.to_str(), self._tokenizer.chat_template])

    # ---- text to ids ----

    def encode(self, parts: Sequence[Span]) -> Encoded:
        """Encode parts as the one text that they are, each control token only where its writer may write it.

        Where people spell none, the ids are the tokenizer's own for the whole text; only where a token reaches over
        the beginning of a part that `opens`, the text is encoded in two.
        """
        scan, edges = self._joined(self._aware, [part.text for part in parts])
        plain = _is_allowed(scan, parts, edges)
        if not plain:
            scan, edges = self._joined(self._unaware, [self._renamed(part) for part in parts])
            if not _is_allowed(scan, parts, edges):
                raise RowProblem("text cannot be encoded without control tokens")
        starts = [*map(scan.tokens_before, edges[:-1]), len(scan.ids)]
        cuts = [
            k
            for k, part in enumerate(parts)
            if k and part.starts_generation and not scan.starts_token_at(starts[k], edges[k])
        ]
        return self._apart(parts, cuts) if cuts else Encoded(scan.ids, starts, plain)

    def encode_after_prompt(self, parts: Sequence[Span], count: int) -> Encoded:
        """Encode parts so that the ids of the first `count` of them are what they are without the others."""
        whole, opening = self.encode(parts), self._opening(parts[count - 1].text)
        end = whole.starts[count]
        if whole.plain and opening:
            # Tokenizers cut at control tokens before all else, so what precedes the last one cannot have changed.
            same = whole.ids[end - len(opening) : end] == opening
        else:
            same = whole.ids[:end] == self.encode(parts[:count]).ids
        return whole if same else self._apart(parts, [count])

    def _apart(self, parts: Sequence[Span], cuts: Sequence[int]) -> Encoded:
        """Encode parts as several texts, cut where these parts begin."""
        ids: list[int] = []
        starts: list[int] = []
        for first, last in pairwise([0, *cuts, len(parts)]):
            encoded = self.encode(parts[first:last])
            starts += [len(ids) + start for start in encoded.starts[:-1]]
            ids += encoded.ids
        return Encoded(ids, [*starts, len(ids)], plain=False)

    def _opening_of(self, text: str) -> list[int]:
        """Return the ids of a template's text from its last control token on; none where it has no such token."""
        ids = self.encode_trusted(text)
        return ids[max((i for i, token in enumerate(ids) if token in self.control_ids), default=len(ids)) :]

    def encode_trusted(self, text: str) -> list[int]:
        """Encode text in which control tokens mean what they say: what a chat template writes."""
        return self.encode([Span(text, self.control_ids)]).ids

    def encode_untrusted(self, text: str, *, allow_markup: bool = False) -> list[int]:
        """Encode text of a person or a data set, in which control tokens are only letters.

        Args:
            allow_markup: let tokens that are not flagged special (such as <think>) through, as answers may hold them.
        """
        return self.encode([Span(text, self.markup_ids if allow_markup else frozenset())]).ids

    def find_control_token(self, text: str, *, allow_markup: bool = False) -> str | None:
        """Return the first control token that `personal` would not encode as one; None if the text spells none."""
        found = self._spellings[allow_markup].search(text)
        return found[0] if found else None

    @cached_property
    def _spellings(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Patterns of all control tokens, and of those that are flagged special."""
        both = ({self._added[i].content for i in ids} for ids in (self.control_ids, self.special_ids))
        ordered = (sorted(map(re.escape, names), key=len, reverse=True) for names in both)
        one, other = (re.compile("|".join(names) or r"(?!)") for names in ordered)
        return one, other

    def find_stop_token(self, text: str) -> tuple[int, int] | None:
        """Return the first special token in a template's text, or else markup, and where it ends."""
        scan = self._scan(self._aware, text)
        found = [(scan.ids[i], last) for i, (_, last) in scan.control.items()]
        return next((one for kind in (self.special_ids, self.markup_ids) for one in found if one[0] in kind), None)

    def _joined(self, encoder: CachedEncoder, texts: Sequence[str]) -> tuple[EncodedText, list[int]]:
        return self._scan(encoder, "".join(texts)), list(accumulate(map(len, texts), initial=0))

    def _scan(self, encoder: CachedEncoder, text: str) -> EncodedText:
        try:
            return encoder.encode(text)
        except TypeError as error:  # half of a surrogate pair, which JSON can hold
            raise RowProblem("has characters that are not Unicode", repr(text[:80])) from error

    def _renamed(self, part: Span) -> str:
        """Return a part's text with private names for the control tokens that its writer may write."""
        if not part.allowed_control_ids:
            return part.text
        pieces, position = [], 0
        scan = self._scan(self._aware, part.text)
        for i, (first, last) in scan.control.items():
            if scan.ids[i] in part.allowed_control_ids:
                pieces += [part.text[position:first], self._names[scan.ids[i]]]
                position = last
        return "".join([*pieces, part.text[position:]])

    @cached_property
    def _unaware(self) -> CachedEncoder:
        """The same tokenizer, to which control tokens are known by their private names only."""
        try:
            return CachedEncoder(rename_tokens(self._backend, self._names), self.control_ids)
        except ValueError as error:
            raise RecipeError(f"the tokenizer would read control tokens in people's text: {error}") from error

    # ---- ids to text ----

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens written out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decodes_to(self, ids: Sequence[int], text: str, *, before: Sequence[int] = ()) -> bool:
        """Say whether ids decode to a text, as far as the tokenizer tells texts apart.

        Args:
            before: the id that stands before them, where one does.
        """
        found = self.decode(ids)
        if found == text:
            return True
        # Some decoders swallow the very first blank, so read on from what stands before.
        before = before or self._letter
        readings = (found, text), (self.decode([*before, *ids]), self.decode(before) + text)
        return any(self._as_read(one) == self._as_read(other) for one, other in readings)

    def _as_read(self, text: str) -> str:
        """Return a text without what the tokenizer cannot see: blanks that control tokens swallow, forms of letters."""
        for token in self._added.values():
            if token.lstrip or token.rstrip:
                blanks = _BLANKS * token.lstrip, _BLANKS * token.rstrip
                text = re.sub(re.escape(token.content).join(blanks), token.content.replace("\\", r"\\"), text)
        normalizer = self._backend.normalizer
        text = str(normalizer.normalize_str(text)) if normalizer else text
        return text if self._sees_blanks else " ".join(text.split())

    @cached_property
    def _sees_blanks(self) -> bool:
        """Say whether the tokenizer tells one blank from many, and from a line break; T5's does not."""
        return self.encode_untrusted("a \n a") != self.encode_untrusted("a a")

    # ---- chat templates ----

    @property
    def has_chat_template(self) -> bool:
        """Say whether the model has a chat template."""
        return bool(self._tokenizer.chat_template)

    def apply_chat_template(self, messages: list[dict[str, str]], *, generation: bool) -> str:
        """Return what the chat template writes; raise what it raises where it refuses the conversation."""
        return self._template.text(messages, generation=generation)

    @cached_property
    def _template(self) -> ChatTemplate:
        chosen = self._tokenizer.chat_template
        if not isinstance(chosen, str):  # of several, transformers knows which is meant
            chosen = self._tokenizer.get_chat_template()
        return ChatTemplate(chosen, self._tokenizer.special_tokens_map)


def _from_transformers(folder: Path) -> tuple[Any, Any]:
    """Return tokenizer and configuration as transformers reads them; no code of the model is run."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = None
        if (folder / "config.json").exists():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), config
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"no usable tokenizer: {str(error).splitlines()[0]}", where=str(folder), hint="it needs tokenizer.json"
        ) from error


def _is_allowed(scan: EncodedText, parts: Sequence[Span], edges: Sequence[int]) -> bool:
    """Say whether every control token lies in one part, and in one whose writer may write it."""
    for i, (first, last) in scan.control.items():
        place = bisect_right(edges, first) - 1
        if last > edges[place + 1] or scan.ids[i] not in parts[place].allowed_control_ids:
            return False
    return True
