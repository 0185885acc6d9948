"""Tokenizers of the kinds that GGUF files have, whose merges show every difference in how a text is split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import tiny

from tunesmith.fetch.pretokenizer import set_pre_tokenizer
from tunesmith.proof.probes import TEXTS

ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PIECES = ("<unk>", "<s>", "</s>")
SPACE = "\u2581"


def byte_level(pre: str | None, *, adds_bos: bool = False, template: str | None = None) -> Any:
    """Return a byte-level BPE tokenizer that splits text as `tokenizer.ggml.pre` says, or not at all.

    Its merges were learned from whole texts, so they join any two characters that are not split.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=list(ENDS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([*TEXTS, *TEXTS], trainer)
    if pre is not None:
        set_pre_tokenizer(backend, pre)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{ENDS[0]} $A", special_tokens=[(ENDS[0], 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=ENDS[0], eos_token=ENDS[2], pad_token=ENDS[2])
    made.chat_template = template
    return made


def save_unknown_pre_tokenizer(folder: Path) -> None:
    """Save a tokenizer in a model's folder that splits text as no pre-tokenizer of llama.cpp does."""
    from tokenizers import Regex, pre_tokenizers

    tokenizer = tiny.make_tokenizer()
    split = pre_tokenizers.Split(Regex("[aeiou]"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)


def sentencepiece(kind: str, *, words: Sequence[str] = (), template: str | None = None) -> Any:
    """Return a BPE tokenizer with byte tokens like that of Llama 2 (`always` or `first`) or Gemma (`never`).

    Args:
        kind: when it writes a blank before a text.
        words: added tokens that text may contain.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token=PIECES[0], fuse_unk=True))
    blanks = normalizers.Replace(" ", SPACE)
    if kind == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    else:
        before = [normalizers.Prepend(SPACE)] if kind == "always" else []
        backend.normalizer = normalizers.Sequence([*before, blanks])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*PIECES, *byte_tokens], limit_alphabet=80, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    made = _like_converted(backend, byte_tokens)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in words])
    result = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    result.chat_template = template
    return result


def _like_converted(backend: Any, byte_tokens: Sequence[str]) -> Any:
    """Return a tokenizer as transformers converts it from SentencePiece.

    Its byte tokens belong to the vocabulary only, and a token has a merge for every two tokens that make it.
    """
    import json

    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in byte_tokens]
    vocabulary = state["model"]["vocab"]
    state["model"]["merges"] = [
        [text[:i], text[i:]]
        for text in sorted(vocabulary, key=vocabulary.get)[len(PIECES) + len(byte_tokens) :]
        for i in range(1, len(text))
        if text[:i] in vocabulary and text[i:] in vocabulary
    ]
    return Tokenizer.from_str(json.dumps(state))
