"""A tokenizer as metadata of a GGUF file, such that llama.cpp gives the same ids.

Facts are those of llama.cpp's src/llama-vocab.cpp: byte-level BPE is its model `gpt2`, and BPE with byte tokens, which
SentencePiece trains, its model `llama`. If a file cannot express a tokenizer, it is refused, or there is a warning.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gguf import TokenType

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.fetch.pretokenizer import gguf_name, single_steps
from tunesmith.gguf.model_name import strips_like_phi3
from tunesmith.gguf.unsupported import unsupported
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.template_text import TemplateReader
from tunesmith.tasks.tokenizer import TokenizerAdapter

_SPACE = "\u2581"  # SentencePiece's character for a blank
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# Pre-tokenizers whose classes of letters llama.cpp approximates.
_SIMPLIFIED = ("gpt-4o", "tekken")
_UNREACHABLE = -1e9  # the score of a token that no merge makes


class Vocabulary(NamedTuple):
    """The metadata of a tokenizer, warnings for the user, and whether its tokens remove blanks as those of Phi-3 do."""

    metadata: dict[str, Any]
    warnings: list[str]
    strips_like_phi3: bool


def describe_vocabulary(folder: Path, *, rows: int) -> Vocabulary:
    """Return the metadata of a folder's tokenizer.

    Args:
        rows: the rows of the embedding. A file needs a token for each, so unused ones get a name.

    Raises:
        RecipeError: the folder has no tokenizer, or llama.cpp has none that gives the same ids.
    """
    tokenizer = load_tokenizer(ModelFolder(str(folder), folder))
    transformers_tokenizer = tokenizer.hf_tokenizer
    backend = transformers_tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    where = folder / "tokenizer.json"
    if (last := max(backend.get_vocab(with_added_tokens=True).values())) >= rows:
        message = f"the tokenizer has the token {last}, but the embedding has only {rows} rows"
        hint = "the tokenizer belongs to another model, or has tokens that were never trained"
        raise RecipeError(message, where=str(where), hint=hint, code="vocabulary-mismatch")
    if state["model"]["type"] != "BPE":
        raise unsupported(f"llama.cpp has no tokenizer like this one ({state['model']['type']})", where)
    is_pieces = bool(state["model"].get("byte_fallback"))
    if is_pieces:
        model, warnings = _sentencepiece(state, has_template=tokenizer.has_chat_template, where=where)
    else:
        model, warnings = _byte_level(backend, state, where=where)
    tokens, types = _read_tokens(backend, state, rows, transformers_tokenizer.unk_token_id if is_pieces else None)
    _refuse_duplicates(tokens, where)
    metadata = {**model, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if is_pieces:
        scores = _scores(state["model"]["merges"])
        metadata["tokenizer.ggml.scores"] = [scores.get(text, _UNREACHABLE) for text in tokens]
    special, more_warnings = _special_tokens(tokenizer, folder)
    like_phi3 = strips_like_phi3(state["added_tokens"], tokens)
    strip_warnings = [] if like_phi3 else _strip_warnings(state)
    return Vocabulary(metadata | special, [*warnings, *strip_warnings, *more_warnings], like_phi3)


def _byte_level(backend: Any, state: dict[str, Any], *, where: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the metadata of byte-level BPE without its tokens."""
    name = gguf_name(backend)
    normalizer = state["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise unsupported(f"llama.cpp does not normalize text as this tokenizer does ({normalizer['type']})", where)
    if name is None:
        raise unsupported("llama.cpp knows no pre-tokenizer that splits text as this tokenizer does", where)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}
    if name not in _SIMPLIFIED:
        return metadata, []
    return metadata, [f"llama.cpp splits letters with combining marks differently from this tokenizer (`{name}`)"]


def _sentencepiece(state: dict[str, Any], *, has_template: bool, where: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the metadata of BPE with byte tokens without its tokens and scores.

    llama.cpp writes a blank before the first text and before each text after a control token, or never. A tokenizer
    that writes one before the first text only never does in a chat, whose texts all follow control tokens.
    """
    prefix = _blank_prefix(state)
    if prefix is None:
        raise unsupported("llama.cpp does not normalize or split text as this tokenizer does", where)
    if not all(byte in state["model"]["vocab"] for byte in _BYTES):
        raise unsupported("the tokenizer has no token for some bytes", where)
    warnings = []
    if prefix == "first":
        case = "texts without the chat template" if has_template else "texts after control tokens"
        warnings.append(f"llama.cpp splits {case} at their beginning differently from this tokenizer")
    adds_prefix = prefix == "always" or (prefix == "first" and not has_template)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": adds_prefix,
    }
    return metadata, warnings


def _blank_prefix(state: dict[str, Any]) -> str | None:
    """Return when a tokenizer writes a blank before a text (always, first, never); None if it changes texts further."""
    prefix = "never"
    for step in single_steps(state["normalizer"], "normalizers"):
        match step:
            case {"type": "Prepend", "prepend": "\u2581"}:
                prefix = "always"
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                pass
            case _:
                return None
    for step in single_steps(state["pre_tokenizer"], "pretokenizers"):
        match step:
            case {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}:
                prefix = scheme
            case {"type": "Split", "pattern": {"String": " "}}:  # the normalizer has left no blanks to split at
                pass
            case _:
                return None
    return prefix


def _scores(merges: list[Any]) -> dict[str, float]:
    """Return {token: score}: the sooner a token is merged, the higher."""
    scores: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        first, _, second = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
        scores.setdefault(first + second, -float(rank))
    return scores


def _read_tokens(backend: Any, state: dict[str, Any], rows: int, unknown: int | None) -> tuple[list[str], list[int]]:
    """Return the text and the type of each token.

    llama.cpp finds control tokens (in text that may contain them) and user-defined tokens before it splits a text.

    Args:
        unknown: the token for unknown characters of a SentencePiece vocabulary; None for byte-level BPE.
    """
    texts = {token_id: text for text, token_id in backend.get_vocab(with_added_tokens=True).items()}
    added = {token["id"]: token for token in state["added_tokens"]}
    tokens, types = [], []
    for token_id in range(rows):
        text, kind = texts.get(token_id), TokenType.NORMAL
        if text is None:
            text, kind = f"[PAD{token_id}]", TokenType.UNUSED
        elif token_id == unknown:
            kind = TokenType.UNKNOWN
        elif token_id in added and added[token_id]["special"]:
            kind = TokenType.CONTROL
        elif token_id in added and (unknown is None or _SPACE not in text):
            kind = TokenType.USER_DEFINED
        elif token_id in added and added[token_id]["normalized"]:
            text, kind = text.replace(_SPACE, " "), TokenType.USER_DEFINED
        elif unknown is not None and text in _BYTES:
            kind = TokenType.BYTE
        # All other added tokens are blanks of a SentencePiece vocabulary, which only merges make: an added token that
        # is not normalized is compared with the text before its blanks are replaced.
        tokens.append(text)
        types.append(int(kind))
    return tokens, types


def _refuse_duplicates(tokens: list[str], where: Path) -> None:
    """Raise RecipeError if two tokens have one text, with which llama.cpp ends its process."""
    [(text, times)] = Counter(tokens).most_common(1)
    if times > 1:
        raise unsupported(f"two tokens have the text {text!r}, which llama.cpp cannot tell apart", where)


def _strip_warnings(state: dict[str, Any]) -> Iterator[str]:
    names = [token["content"] for token in state["added_tokens"] if token["lstrip"] or token["rstrip"]]
    if names:
        yield f"llama.cpp keeps the blanks next to {', '.join(names[:5])}, which this tokenizer removes"


def _special_tokens(tokenizer: TokenizerAdapter, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of special tokens and the chat template, and warnings."""
    original = tokenizer.hf_tokenizer
    before, after = tokenizer.special_tokens_around(target=False)
    ids = {"bos": original.bos_token_id, "eos": original.eos_token_id, "unknown": original.unk_token_id}
    ids["padding"] = original.pad_token_id
    end_of_turn, warnings = _end_of_turn(tokenizer)
    if ids["eos"] is None:
        ids["eos"] = end_of_turn
    if ids["eos"] is None:
        message = "the tokenizer has no end-of-text token, so llama.cpp would end answers at another one"
        hint = "set eos_token in tokenizer_config.json"
        raise RecipeError(message, where=str(folder), hint=hint, code="no-stop-token")
    if end_of_turn is not None:
        ids["eot"] = end_of_turn
    metadata: dict[str, Any] = {
        f"tokenizer.ggml.{name}_token_id": int(token_id) for name, token_id in ids.items() if token_id is not None
    }
    adds_bos, adds_eos = before == (ids["bos"],), after == (ids["eos"],)
    if (before and not adds_bos) or (after and not adds_eos):
        warnings.append("this tokenizer writes special tokens around a text that llama.cpp does not write")
    metadata |= {"tokenizer.ggml.add_bos_token": adds_bos, "tokenizer.ggml.add_eos_token": adds_eos}
    return metadata | _chat_template(original), warnings


def _end_of_turn(tokenizer: TokenizerAdapter) -> tuple[int | None, list[str]]:
    """Return the token that ends an answer in the chat template; llama.cpp guesses it only by well-known names."""
    if not tokenizer.has_chat_template:
        return None, []
    try:
        return TemplateReader(tokenizer, {}).stop_id, []
    except (TunesmithError, RowProblem) as problem:
        return None, [f"the token that ends a turn is unknown, so answers may not stop ({problem})"]


def _chat_template(original: Any) -> dict[str, Any]:
    """Return the keys of the chat template, and of further named ones."""
    template = original.chat_template
    if not template:
        return {}
    if isinstance(template, str):
        template = {"default": template}
    if original.bos_token is None:  # llama.cpp would write another token in its place
        template = {name: _without_bos(text) for name, text in template.items()}
    named = {f"tokenizer.chat_template.{name}": text for name, text in template.items() if name != "default"}
    metadata = {"tokenizer.chat_template": template.get("default") or original.get_chat_template(), **named}
    return metadata | ({"tokenizer.chat_templates": [name.rpartition(".")[2] for name in named]} if named else {})


def _without_bos(template: str) -> str:
    return "{%- set bos_token = '' -%}" + template if "bos_token" in template else template
