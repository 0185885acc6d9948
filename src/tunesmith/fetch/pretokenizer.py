"""How text is split into words before byte-level BPE, under the names of `tokenizer.ggml.pre` in `.gguf` files.

A `.gguf` file has the vocabulary and the merges of such a tokenizer, but only a name for the patterns that split a text
first. Names, patterns and flags are those of llama.cpp's src/llama-vocab.cpp (`llm_tokenizer_bpe`), with each pattern
in the form of the tokenizer.json that it comes from.
"""

import json
from typing import Any, NamedTuple

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_MARKS, _BLANKS = r" ?[^\s\p{L}\p{N}]+", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_MARKS}[\r\n]*|{_BLANKS}"
QWEN2 = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_MARKS}[\r\n]*|{_BLANKS}"
QWEN35 = (
    rf"{_CONTRACTIONS}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
)  # fmt: skip
O200K = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_MARKS}[\r\n/]*|{_BLANKS}"
)
TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_MARKS}[\r\n/]*|{_BLANKS}"
_SEED = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}"
_MINICPM5 = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}+|{_MARKS}[\r\n]*|{_BLANKS}"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}"
)
DIGIT, DIGITS, _THREE_DIGITS = r"\p{N}", r"\p{N}+", "[0-9][0-9][0-9]"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"  # ASCII punctuation, and that of other scripts
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


class PreTokenizer(NamedTuple):
    """How a byte-level BPE tokenizer splits a text into words.

    Attributes:
        patterns: applied one after another, each to the pieces that the former ones left; each match, and each text
            between two matches, becomes a piece.
        ignores_merges: whether a word that is a token of the vocabulary becomes that token without merges.
        adds_bos: whether the beginning-of-sequence token is added if a file does not set this.
    """

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False


# The first name of a line is the one that `gguf_name` returns. All names of a line differ only in flags of llama.cpp
# that do not change the ids of a text.
_NAMES = {
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo jais "
    "trillion granite-docling": PreTokenizer((GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": PreTokenizer((DIGIT, GPT2)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        (LLAMA3,), True, True
    ),
    "smaug-bpe dbrx glm4 chatglm-bpe": PreTokenizer((LLAMA3,)),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizer((QWEN2,)),
    "qwen35": PreTokenizer((QWEN35,)),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((O200K,)),
    "tekken": PreTokenizer((TEKKEN,), True, True),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _MINICPM5), True),
    "seed-coder": PreTokenizer((_SEED,)),
    "deepseek-coder": PreTokenizer(
        ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", DIGIT)
    ),
    "deepseek-v3 hunyuan-dense joyai-llm": PreTokenizer(
        (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3)
    ),
    "falcon": PreTokenizer((_PUNCTUATION, GPT2, _THREE_DIGITS)),
    "bloom poro-chat gpt3-finnish": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, DIGIT)),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, _THREE_DIGITS)),
}
PRE_TOKENIZERS = {name: splitting for names, splitting in _NAMES.items() for name in names.split()}


def set_pre_tokenizer(backend: Any, name: str) -> None:
    """Let a byte-level BPE `tokenizers.Tokenizer` split by the patterns of a name; raise KeyError if it has none."""
    from tokenizers import Regex, pre_tokenizers

    patterns, ignores_merges, _ = PRE_TOKENIZERS[name]
    is_gpt2 = patterns[-1] == GPT2  # which ByteLevel has built in
    steps = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern == DIGIT
        else pre_tokenizers.Split(Regex(pattern), "isolated")
        for pattern in (patterns[:-1] if is_gpt2 else patterns)
    ]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=is_gpt2)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level
    backend.model.ignore_merges = ignores_merges


def splits_as(backend: Any, name: str) -> bool:
    """Return whether a `tokenizers.Tokenizer` splits texts by the patterns of a name."""
    wanted = PRE_TOKENIZERS[name]
    is_bpe = type(backend.model).__name__ == "BPE"
    return is_bpe and (split_patterns(backend.pre_tokenizer), backend.model.ignore_merges) == wanted[:2]


def gguf_name(backend: Any) -> str | None:
    """Return the `tokenizer.ggml.pre` of a `tokenizers.Tokenizer`; None if no name means its patterns."""
    return next((name for name in PRE_TOKENIZERS if splits_as(backend, name)), None)


def split_patterns(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """Return the patterns of a pre-tokenizer that ends in ByteLevel; None if it has other steps."""
    if pre_tokenizer is None:
        return None
    steps = single_steps(json.loads(pre_tokenizer.__getstate__()), "pretokenizers")
    patterns = [pattern for step in steps[:-1] if (pattern := _pattern(step))]
    last = steps[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(patterns) < len(steps) - 1:
        return None
    return (*patterns, GPT2) if last["use_regex"] else tuple(patterns)


def single_steps(state: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the steps of a part of a tokenizer.json; none if it has no such part.

    Args:
        key: the key of the steps if the part is a sequence: normalizers, pretokenizers or processors.
    """
    if state is None:
        return []
    return list(state[key]) if state["type"] == "Sequence" else [state]


def _pattern(step: dict[str, Any]) -> str | None:
    """Return the pattern whose matches and the texts between them are the pieces of a step."""
    match step:
        case {"type": "Digits", "individual_digits": individual}:
            return DIGIT if individual else DIGITS
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return _PUNCTUATION
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
    return None
