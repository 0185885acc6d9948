"""Split text into words for ROUGE and BLEU, by the script of the reference.

The package rouge-score knows only a-z and 0-9, and BLEU's standard tokenizer takes a Chinese sentence for one word. If
the reference is in another script, both texts are therefore split into words of any script, or into characters if the
script puts no spaces between words. Latin text is split as in published scores.
"""

import unicodedata
from collections.abc import Callable

WordTokenizer = Callable[[str], list[str]]

# A quotation or a symbol in another script does not make a text one of that script.
_OTHER_LETTERS = 0.1
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF),  # Thai, Lao, Tibetan, Burmese, Khmer
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)  # fmt: skip


def word_tokenizer_for(reference: str) -> WordTokenizer:
    """Return what cuts a reference, and predictions for it, into words: rouge-score's way if it is Latin text."""
    return unicode_words if is_non_latin(reference) else latin_words


def latin_words(text: str) -> list[str]:
    """Return the words of a text as rouge-score finds them: runs of a-z and 0-9."""
    from rouge_score.tokenize import tokenize

    found: list[str] = tokenize(text, None)
    return found


def unicode_words(text: str) -> list[str]:
    """Return runs of letters, digits and their marks; characters of scripts without spaces one by one."""
    return space_words(unicodedata.normalize("NFKC", text).casefold(), keep_others=False).split()


def space_words(text: str, *, keep_others: bool = True) -> str:
    """Return a text with spaces around characters of scripts that have none.

    Args:
        keep_others: keep punctuation and signs, those of other scripts apart; else they become blanks.
    """
    found = []
    for character in text:
        kind = unicodedata.category(character)[0]
        if kind == "M":  # a vowel sign or a tone belongs to the letter before it
            found.append(character)
        elif _is_unspaced(character) and kind in "LN":
            found.append(f" {character}")
        elif kind in "LN":
            after = bool(found) and _is_unspaced(found[-1].strip()[-1:] or " ")
            found.append(f" {character}" if after else character)
        else:
            found.append(" " if not keep_others else character if character.isascii() else f" {character} ")
    return "".join(found)


def is_non_latin(text: str) -> bool:
    """Say whether more than a tenth of a text's letters are of another script than Latin."""
    letters = [character for character in text if character.isalpha()]
    if text.isascii() or not letters:
        return False
    others = sum(not (c.isascii() or unicodedata.name(c, "").startswith(("LATIN", "FULLWIDTH LATIN"))) for c in letters)
    return others > _OTHER_LETTERS * len(letters)


def _is_unspaced(character: str) -> bool:
    """Say whether a character is of a script that puts no spaces between words."""
    code = ord(character)
    return code >= 0x0E00 and any(first <= code <= last for first, last in _UNSPACED)
