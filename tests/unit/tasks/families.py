"""Small tokenizers with chat templates like those of real model families, built in milliseconds.

The templates are written for these tests. Each has a peculiarity of a real family that has broken a renderer before.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tunesmith.core.records import Turn
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import ChatData
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

CORPUS = [
    f"user\n\nSay {a} and {b}, then  {c}.\n\nassistant\n\n  {a} [INST] model\n {b}</think>\n\n"
    for a in ("one", "two", "red", "<|im_end|>", "<end>")
    for b in ("blue", "cat", "<think>")
    for c in ("dog", "go")
]


def byte_level(
    specials: Sequence[str] = (),
    late: Sequence[AddedToken] = (),
    *,
    normalizer: Any = None,
    prefix: str | None = None,
    lines_whole: bool = False,
) -> Tokenizer:
    """Return a byte-level BPE tokenizer.

    Args:
        specials: special tokens in the vocabulary.
        late: tokens in added_tokens only.
        lines_whole: keep line breaks together, like newer patterns. GPT-2's pattern splits the last of several blanks
            off if a word follows.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if lines_whole:
        words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*\n+|\s+(?!\S)|\s+"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    for token in late:
        backend.add_tokens([token])
    if prefix is not None:
        backend.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=True), _adds_prefix(backend, prefix)]
        )
    return backend


def sentencepiece_bpe(specials: Sequence[str], *, style: str, prefix: str) -> Tokenizer:
    """Return a BPE tokenizer that writes spaces as U+2581 and has a token for every byte.

    Args:
        style: which part of the tokenizer adds the first space.
    """
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    strip: list[Any] = [decoders.Strip(" ", 1, 0)]
    if style == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif style == "bare":
        backend.normalizer, strip = normalizers.Replace(" ", "\u2581"), []
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=style)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", *specials], limit_alphabet=60, show_progress=False
    )
    split, backend.pre_tokenizer = backend.pre_tokenizer, pre_tokenizers.Split("\u2581", "merged_with_next")
    if style in ("first", "always"):
        backend.pre_tokenizer = split
    backend.train_from_iterator(CORPUS, trainer)  # as in SentencePiece, no piece crosses a space
    backend.pre_tokenizer = split
    vocabulary = backend.get_vocab()
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in _state(backend)["model"]["merges"]]
    backend.model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend.post_processor = _adds_prefix(backend, prefix)
    return backend


def unigram(specials: Sequence[str]) -> Tokenizer:
    """Return a unigram tokenizer, which cannot encode characters that are not in the corpus."""
    pieces = sorted({*"".join(CORPUS), *"qzplaceholderxkj017", "\u2581", *" ".join(CORPUS).split()} - {" "})
    scored = [("<unk>", 0.0), *((text, -1.0) for text in specials), *((text, -9.0 / len(text)) for text in pieces)]
    backend = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    backend.add_special_tokens(["<unk>", *specials])
    return backend


def _adds_prefix(backend: Tokenizer, text: str) -> Any:
    return processors.TemplateProcessing(
        single=f"{text} $A", pair=f"{text} $A $B", special_tokens=[(text, backend.token_to_id(text))]
    )


def _state(backend: Tokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(backend.to_str())
    return state


def wrapped(backend: Tokenizer, template: str | None, **tokens: str) -> Any:
    """Return the tokenizer as transformers loads it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    tokenizer.chat_template = template
    return tokenizer


def special(text: str, **flags: bool) -> AddedToken:
    return AddedToken(text, special=True, normalized=False, **flags)


def markup(text: str) -> AddedToken:
    return AddedToken(text, special=False, normalized=False)


def _unchanged(text: str) -> str:
    return text


def _without_leading_blanks(text: str) -> str:
    return re.sub(r"^[^\S\x1c-\x1f]+", "", text)  # tokenizers do not count these four as blanks


@dataclass(frozen=True, repr=False)
class Family:
    """A template with its tokenizer, and how a correct renderer uses them.

    Attributes:
        written: returns an answer as the template renders it.
        answer_prefix: text of the template at the beginning of the last answer.
    """

    name: str
    template: str
    backend: Callable[[], Tokenizer]
    stop: str
    tokens: dict[str, str] = field(default_factory=dict)
    answer_prefix: str = ""
    has_system: bool = True
    every_turn_ends: bool = True
    written: Callable[[str], str] = _unchanged
    exact: bool = True
    """Whether the last tokens of a prompt are the same with any answer after them."""

    @cached_property
    def hf_tokenizer(self) -> Any:
        return wrapped(self.backend(), self.template, **self.tokens)

    @cached_property
    def tokenizer(self) -> TokenizerAdapter:
        return TokenizerAdapter(self.hf_tokenizer)

    def task(self, **changes: Any) -> ChatTask:
        return ChatTask(chat_data(**changes), self.tokenizer)

    def own_ids(self, turns: Sequence[Turn], *, generation: bool = False, **arguments: Any) -> list[int]:
        """Return the ids of a conversation by transformers, with further arguments of the template."""
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        ids: list[int] = self.hf_tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=generation, return_dict=False, **arguments
        )
        return ids

    def controls(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self.tokenizer.control_ids]

    def runs(self, ids: Sequence[int], trained: Sequence[bool]) -> list[str]:
        """Return the text of each run of trained tokens."""
        runs: list[list[int]] = []
        for index, (token, is_trained) in enumerate(zip(ids, trained, strict=True)):
            if is_trained:
                if not index or not trained[index - 1]:
                    runs.append([])
                runs[-1].append(token)
        return [self.tokenizer.decode(run) for run in runs]


def chat_data(**changes: Any) -> ChatData:
    shape = {} if "messages" in changes else {"prompt": "{question}", "response": "{answer}"}
    return ChatData(source=FileSource(file="rows.jsonl"), task="chat", **shape, **changes)


def conversation(*texts: str, system: str | None = None, train_on: str = "all") -> tuple[Turn, ...]:
    """Return alternating turns of user and assistant, trained on by the recipe's `train_on`."""
    turns = [] if system is None else [Turn("system", system, trained=False)]
    for index, text in enumerate(texts):
        role = "assistant" if index % 2 else "user"
        trained = role == "assistant" and (train_on == "all" or index == len(texts) - 1)
        turns.append(Turn(role, text, trained=trained))
    return tuple(turns)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}" + CHATML
# Removes the thoughts of earlier answers; the last answer gets an empty thought if it has none.
THINKING = (
    "{% set ns = namespace(asked=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% set parts = m.content.split('</think>') %}{% set said = parts[-1].lstrip('\n') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip('\n') if parts|length > 1 else '' %}"
    "{% if loop.index0 > ns.asked %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|body|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|body|>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system turns here') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must take turns') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
INSTRUCTIONS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}"
)
SYSTEM_INSIDE = (
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    "{% set said = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content if loop.first and system else m.content %}"
    "{{ bos_token }}[INST] {{ said.strip() }} [/INST]{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
LAST_EOS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SWALLOWING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)

_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HEADERS = ("<|bos|>", "<|eos|>", "<|head|>", "<|body|>", "<|eot|>")
_THINK = ("<think>", "</think>")

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "chatml",
            CHATML,
            lambda: byte_level(_CHATML, [markup(text) for text in _THINK]),
            stop="<|im_end|>",
            tokens={"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        ),
        Family(
            "default-system",
            DEFAULT_SYSTEM,
            # The order of a real vocabulary: markup between the control tokens, all of it beyond the vocabulary.
            lambda: byte_level(
                (), [special(_CHATML[0]), markup("<tool>"), *map(special, _CHATML[1:]), *map(markup, _THINK)]
            ),
            stop="<|im_end|>",
            tokens={"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
        ),
        Family(
            "thinking",
            THINKING,
            lambda: byte_level((), [*map(special, _CHATML), *map(markup, _THINK)], normalizer=normalizers.NFC()),
            stop="<|im_end|>",
            tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
            answer_prefix="<think>\n\n</think>\n\n",
            written=lambda text: text.lstrip("\n"),
        ),
        Family(
            "headers",
            HEADERS,
            lambda: byte_level((), list(map(special, _HEADERS)), prefix="<|bos|>", lines_whole=True),
            stop="<|eot|>",
            tokens={"bos_token": "<|bos|>", "eos_token": "<|eos|>"},
            written=str.strip,
        ),
        Family(
            "headers-parted",
            HEADERS,
            lambda: byte_level((), list(map(special, _HEADERS)), prefix="<|bos|>"),
            stop="<|eot|>",
            tokens={"bos_token": "<|bos|>", "eos_token": "<|eos|>"},
            written=str.strip,
            exact=False,
        ),
        Family(
            "turns",
            TURNS,
            lambda: sentencepiece_bpe(("<bos>", "<eos>", "<turn>", "<end>"), style="bare", prefix="<bos>"),
            stop="<end>",
            tokens={"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
            has_system=False,
            written=str.strip,
        ),
        Family(
            "instructions",
            INSTRUCTIONS,
            lambda: sentencepiece_bpe(("<s>", "</s>", "[INST]", "[/INST]"), style="first", prefix="<s>"),
            stop="</s>",
            tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
            answer_prefix=" ",
            has_system=False,
        ),
        Family(
            "instructions-always",
            INSTRUCTIONS,
            lambda: sentencepiece_bpe(("<s>", "</s>", "[INST]", "[/INST]"), style="always", prefix="<s>"),
            stop="</s>",
            tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
            answer_prefix=" ",
            has_system=False,
        ),
        Family(
            "system-inside",
            SYSTEM_INSIDE,
            lambda: sentencepiece_bpe(("<s>", "</s>"), style="normalizer", prefix="<s>"),
            stop=" </s>",
            tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
            answer_prefix=" ",
            written=str.strip,
        ),
        Family(
            "last-eos",
            LAST_EOS,
            lambda: byte_level(("<|endoftext|>",)),
            stop="<|endoftext|>",
            tokens={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
            every_turn_ends=False,
        ),
        Family(
            "swallowing",
            SWALLOWING,
            lambda: byte_level(
                ("<|endoftext|>",),
                [special(text, rstrip=True) for text in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")],
            ),
            stop="<|end|>",
            tokens={"eos_token": "<|endoftext|>"},
            written=_without_leading_blanks,
        ),
        Family(
            "unigram",
            CHATML,
            lambda: unigram(_CHATML),
            stop="<|im_end|>",
            tokens={"eos_token": "<|im_end|>", "unk_token": "<unk>"},
        ),
    )
}
