"""The tokenizer and its chat template, with the one promise transformers does not make:

text that came from a person is never encoded into a control token.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of
from tunesmith.tasks.base import RowProblem

# Added tokens that are not flagged special still steer a model when they look like markup (<think>, [INST], <|x|>);
# runs of blanks, which some tokenizers add too, do not.
_MARKUP = re.compile(r"<.+>|\[.+\]")
# Where people's text spells control tokens, those of the template are renamed to one private character each.
_FIRST_NAME = 0xF0000
_NAMES = re.compile("[\U000f0000-\U0010ffff]")


class Part(NamedTuple):
    """A stretch of text by one writer; control tokens that he may not write are only letters there.

    A part that `opens` is where a model goes on by itself, so no token may reach over its beginning.
    """

    text: str
    writes: frozenset[int] = frozenset()
    opens: bool = False


class Encoded(NamedTuple):
    """The ids of some parts, and at which of them each part begins; the last of `starts` is the end.

    `plain` says that the ids are what the tokenizer by itself makes of the whole text.
    """

    ids: list[int]
    starts: list[int]
    plain: bool


class Codec:
    """Encodes what different writers wrote, decodes, and renders chat templates."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise RecipeError(
                f"the tokenizer {type(tokenizer).__name__} has no fast version, so spans cannot be proved",
                hint="use a model whose folder has a tokenizer.json",
            )
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()  # a tokenizer.json may ask for it, and would silently cut rows
        self._backend.no_padding()
        self._added = tokenizer.added_tokens_decoder
        self.eos_id: int | None = tokenizer.eos_token_id
        steering = {i: token for i, token in self._added.items() if i != self._unknown_id}
        self.special_ids = frozenset(i for i, token in steering.items() if token.special)
        self.markup_ids = frozenset(i for i in steering if _MARKUP.fullmatch(steering[i].content)) - self.special_ids
        self.control_ids = self.special_ids | self.markup_ids
        self._names = {i: chr(_FIRST_NAME + number) for number, i in enumerate(sorted(self.control_ids))}
        self._letter = self.personal("a")
        self.prefix_ids = self._prefix_ids()
        self._opening = lru_cache(maxsize=256)(self._opening_of)

    @classmethod
    def load(cls, folder: Path) -> "Codec":
        """Load the tokenizer of a model folder; no weights are read and no code of the model is run."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise RecipeError(
                f"no usable tokenizer: {str(error).splitlines()[0]}", where=str(folder), hint="it needs tokenizer.json"
            ) from error
        return cls(tokenizer)

    @property
    def _unknown_id(self) -> int | None:
        """The id that stands for unknown characters: it steers nothing, and any text may hold such a character."""
        model, unknown = self._backend.model, self.tokenizer.unk_token_id
        emitted = type(model).__name__ == "Unigram" or getattr(model, "unk_token", None) is not None
        # Tokenizers that know every byte often call their <|endoftext|> so, and that one does steer.
        steers = unknown in (self.eos_id, self.tokenizer.bos_token_id)
        return None if unknown is None or steers or not emitted else int(unknown)

    def _prefix_ids(self) -> tuple[int, ...]:
        """Return what the tokenizer puts before every text: with nearly all [bos] or nothing."""
        whole, count = list(self.tokenizer("a").input_ids), len(self._letter)
        return next((tuple(whole[:i]) for i in range(len(whole)) if whole[i : i + count] == self._letter), ())

    @property
    def pad_id(self) -> int:
        """The id that fills up batches; masks go by position, so any id will do, eos included."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.eos_id if self.eos_id is not None else 0)

    @cached_property
    def digest(self) -> str:
        """Digest of all that decides how text becomes ids: vocabulary, rules, chat template."""
        return digest_of([self._backend.to_str(), self.tokenizer.chat_template])

    # ---- text to ids ----

    def encode(self, parts: Sequence[Part]) -> Encoded:
        """Encode parts as the one text that they are, each control token only where its writer may write it.

        Where people spell none, the ids are the tokenizer's own for the whole text, but for one exception: where a
        token reaches over the beginning of a part that `opens`, the text is encoded in two.
        """
        texts = [part.text for part in parts]
        edges = list(accumulate(map(len, texts), initial=0))
        scan = self._scan(self._backend, "".join(texts))
        plain = all(_may_write(parts, edges, scan.ids[i], *place) for i, place in scan.control.items())
        if not plain:
            named = [self._renamed(part) for part in parts]
            edges = list(accumulate(map(len, named), initial=0))
            scan = self._scan(self._unaware, "".join(named))
            meant = sum(len(_NAMES.findall(text)) for text in named)
            if any(map(_NAMES.search, texts)) or len(scan.control) != meant:
                raise RowProblem("text cannot be encoded without control tokens", repr("".join(texts)[-80:]))
        starts = [*(bisect_right(scan.ends, edge) for edge in edges[:-1]), len(scan.ids)]
        cuts = [k for k, part in enumerate(parts) if k and part.opens and not scan.is_cut(starts[k], edges[k])]
        if not cuts:
            return Encoded(scan.ids, starts, plain)
        ids, starts = [], []
        for first, last in pairwise([0, *cuts, len(parts)]):
            encoded = self.encode(parts[first:last])
            starts += [len(ids) + start for start in encoded.starts[:-1]]
            ids += encoded.ids
        return Encoded(ids, [*starts, len(ids)], plain=False)

    def begins(self, whole: Encoded, parts: Sequence[Part]) -> bool:
        """Say whether a text that begins with these parts has ids that begin with the ids of these parts alone."""
        count, opening = whole.starts[len(parts)], self._opening(parts[-1].text)
        if whole.plain and opening:
            # Tokenizers cut at control tokens before all else, so what follows one cannot change what precedes it.
            return whole.ids[count - len(opening) : count] == opening
        return whole.ids[:count] == self.encode(parts).ids

    def _opening_of(self, text: str) -> list[int]:
        """Return the ids of a template's text from its last control token on; none where it has no such token."""
        ids = self.markup(text)
        return ids[max((i for i, token in enumerate(ids) if token in self.control_ids), default=len(ids)) :]

    def markup(self, text: str) -> list[int]:
        """Encode text in which control tokens mean what they say: what a chat template writes."""
        return self.encode([Part(text, self.control_ids)]).ids

    def personal(self, text: str, *, allow_markup: bool = False) -> list[int]:
        """Encode text of a person or a data set, in which control tokens are only letters.

        Args:
            allow_markup: let tokens that are not flagged special (such as <think>) through, as answers may hold them.
        """
        return self.encode([Part(text, self.markup_ids if allow_markup else frozenset())]).ids

    def _scan(self, backend: Any, text: str) -> "_Scan":
        try:
            encoding = backend.encode(text, add_special_tokens=False)
        except TypeError as error:  # half of a surrogate pair, which JSON can hold
            raise RowProblem("has characters that are not Unicode", repr(text[:80])) from error
        ids, offsets = encoding.ids, encoding.offsets
        control = {}
        for i in (i for i, token in enumerate(ids) if token in self.control_ids):
            first, last = offsets[i]  # some control tokens swallow the blanks beside them
            matched = text[first:last]
            control[i] = first + len(matched) - len(matched.lstrip()), first + len(matched.rstrip())
        ends = [last for _, last in offsets]
        for i, (_, last) in control.items():
            ends[i] = last
        return _Scan(ids, offsets, ends, control)

    def _renamed(self, part: Part) -> str:
        """Return a part's text with private names for the control tokens that its writer may write."""
        if not part.writes:
            return part.text
        pieces, position = [], 0
        scan = self._scan(self._backend, part.text)
        for i, (first, last) in scan.control.items():
            if scan.ids[i] in part.writes:
                pieces += [part.text[position:first], self._names[scan.ids[i]]]
                position = last
        return "".join([*pieces, part.text[position:]])

    @cached_property
    def _unaware(self) -> Any:
        """The same tokenizer, to which control tokens are known by their private names only."""
        from tokenizers import Tokenizer

        state = json.loads(self._backend.to_str())
        for token in state["added_tokens"]:
            if token["id"] in self._names:
                token |= {"content": self._names[token["id"]], "normalized": False, "single_word": False}
        # Renamed, not removed: the ids of added tokens follow from how many come before them.
        model = state["model"]
        if isinstance(model["vocab"], dict):
            old = {text for text, i in model["vocab"].items() if i in self._names}
            model["vocab"] = {self._names.get(i, text): i for text, i in model["vocab"].items()}
            merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]
            model |= {"merges": [m for m in merges if old.isdisjoint([*m, "".join(m)])]} if merges else {}
        else:
            model["vocab"] = [[self._names.get(i, text), score] for i, (text, score) in enumerate(model["vocab"])]
        unaware = Tokenizer.from_str(json.dumps(state))
        if any(unaware.token_to_id(self._names.get(i, token.content)) != i for i, token in self._added.items()):
            raise RecipeError("the tokenizer cannot be kept from reading control tokens in people's text")
        return unaware

    # ---- ids to text ----

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens written out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def says(self, ids: Sequence[int], text: str, *, before: Sequence[int] = ()) -> bool:
        """Say whether ids decode to a text, as far as the tokenizer tells texts apart.

        Args:
            before: the id that stands before them, where one does.
        """
        found = self.decode(ids)
        if found == text:
            return True
        # Some decoders swallow the very first blank, so read on from what stands before.
        before = before or self._letter
        pairs = (found, text), (self.decode([*before, *ids]), self.decode(before) + text)
        return any(self._as_read(found) == self._as_read(wanted) for found, wanted in pairs)

    def _as_read(self, text: str) -> str:
        """Return a text without what the tokenizer cannot see: blanks that control tokens swallow, forms of letters."""
        for token in self._added.values():
            if token.lstrip or token.rstrip:
                blanks = r"\s*" * token.lstrip, r"\s*" * token.rstrip
                text = re.sub(re.escape(token.content).join(blanks), token.content.replace("\\", r"\\"), text)
        normalizer = self._backend.normalizer
        return str(normalizer.normalize_str(text)) if normalizer else text

    # ---- chat templates ----

    @property
    def has_template(self) -> bool:
        """Say whether the model has a chat template."""
        return bool(self.tokenizer.chat_template)

    def chat_text(self, messages: list[dict[str, str]], *, generation: bool) -> str:
        """Return what the chat template writes; raise what it raises where it refuses the conversation."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))


class _Scan(NamedTuple):
    """An encoded text. `control` tells where, without the blanks around it, each control token stands."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    ends: list[int]
    control: dict[int, tuple[int, int]]

    def is_cut(self, token: int, edge: int) -> bool:
        """Say whether all tokens before this one end at a character, and no other reaches back over it."""
        first = self.control[token][0] if token in self.control else self.offsets[token][0] if token < len(self.ids) else edge
        return first >= edge and (token == 0 or self.offsets[token - 1][1] >= edge)


def _may_write(parts: Sequence[Part], edges: Sequence[int], token: int, first: int, last: int) -> bool:
    """Say whether a control token lies in one part, and in one whose writer may write it."""
    place = bisect_right(edges, first) - 1
    return last <= edges[place + 1] and token in parts[place].writes
