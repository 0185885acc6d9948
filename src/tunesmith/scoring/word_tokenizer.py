"""Split text into words for ROUGE and BLEU, according to the script of the reference.

The package rouge-score recognises only a-z and 0-9, and BLEU's standard tokenizer treats a Chinese sentence as one
word. So if the reference is in another script than Latin, both texts are split into words of any script, or into
characters if the script has no spaces between words. Latin text is split as for published scores.
"""

import unicodedata
from collections.abc import Callable

WordTokenizer = Callable[[str], list[str]]

_MAX_NON_LATIN_SHARE = 0.1  # of the letters of a Latin text, which may quote another script
_UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF),  # Thai, Lao, Tibetan, Burmese, Khmer
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)  # fmt: skip


def word_tokenizer_for(reference: str) -> WordTokenizer:
    """Return the function that splits a reference, and its predictions, into words: rouge-score's for Latin text."""
    return unicode_words if is_non_latin(reference) else latin_words


def latin_words(text: str) -> list[str]:
    """Return the words of a text as rouge-score does: runs of a-z and 0-9."""
    from rouge_score.tokenize import tokenize

    words: list[str] = tokenize(text, None)
    return words


def unicode_words(text: str) -> list[str]:
    """Return the words of a text in any script; in scripts without spaces, each character is a word."""
    return space_words(unicodedata.normalize("NFKC", text).casefold(), keep_others=False).split()


def space_words(text: str, *, keep_others: bool = True) -> str:
    """Put spaces around each character of a script that has no spaces between words.

    Args:
        keep_others: keep punctuation and symbols, with spaces around those that are not ASCII; otherwise they become
            spaces.
    """
    parts = []
    for character in text:
        category = unicodedata.category(character)[0]
        if category == "M":  # a vowel sign or a tone mark belongs to the letter before it
            parts.append(character)
        elif _is_unspaced(character) and category in "LN":
            parts.append(f" {character}")
        elif category in "LN":
            follows_unspaced = bool(parts) and _is_unspaced(parts[-1].strip()[-1:] or " ")
            parts.append(f" {character}" if follows_unspaced else character)
        else:
            parts.append(" " if not keep_others else character if character.isascii() else f" {character} ")
    return "".join(parts)


def is_non_latin(text: str) -> bool:
    """Return whether more than a tenth of a text's letters belong to another script than Latin."""
    letters = [character for character in text if character.isalpha()]
    if text.isascii() or not letters:
        return False
    others = sum(not (c.isascii() or unicodedata.name(c, "").startswith(("LATIN", "FULLWIDTH LATIN"))) for c in letters)
    return others > _MAX_NON_LATIN_SHARE * len(letters)


def _is_unspaced(character: str) -> bool:
    """Return whether a character belongs to a script without spaces between words."""
    code = ord(character)
    return code >= 0x0E00 and any(first <= code <= last for first, last in _UNSPACED_SCRIPTS)
