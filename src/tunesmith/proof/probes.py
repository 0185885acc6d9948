# ruff: noqa: RUF001 (letters that look like others are the purpose)
r"""Texts and conversations that tokenizers and chat templates of different programs read differently.

Each text is known to separate two pre-tokenizers that users' files were confused between, or belongs to a reported
fault: digits (`smollm`, `llama3`, `gpt-2` split them differently), blanks before digits and at the ends of lines, what
Unicode counts as a blank, a number or a letter, and contractions in upper case.
"""

from collections.abc import Sequence

TEXTS = (
    "In 2026, 3.14159 and 1,000,000 are numbers; so are 007 and 1e-10.",
    "x =  42;   y = 7",
    "a\n\nb\n\n\n  1) c\n\t2) d",
    "first\r\nsecond\r\n\r\nthird",
    "no\u00a0break 10\u00a0000 thin\u2009space \u3000ideographic",
    "½ cup, 2² = 4, x₁, Ⅳ, ٣٤٥",
    "it's I'LL we'Ve don’t ’tis o'clock",
    "価格は1,200円です。你好，世界！안녕하세요 123",
    "👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ ☺",
    "  leading and trailing  ",
    "\n\n leading line break\n",
    "tabs\tand\t\tmore   spaces    before words",
    "e\u0301 é ﬁ Å Å naïve Straße ǅ",
    "def f(x):\n    return {'a': [x**2, None], \"b\": x != 3}  # ok",
    "SELECT COUNT(*) FROM \"t\" WHERE a<>'b' AND c>=10.5;",
    "https://example.org/a_b?c=1&d=%20#e user@example.org C:\\temp\\new",
    "THE QUICK_brown-Fox...!!! (((nested))) --- ___ ~~~ ***",
    "العربية עברית हिन्दी ไทย Ελληνικά русский 1990-х",
    "zero\u200bwidth \u200ejoiners\u200d \ufeffmark \u00ad",
    "\\u0041 \x07 \x1b[0m \x7f",
    " ",
    "word",
    "0",
)

_QUESTION = "How many orders of 2025 cost more than 10.50?"


def control_texts(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return texts that spell some control tokens, alone, between words, and next to blanks and line breaks.

    Args:
        tokens: control tokens of the model, of which the first few are used.
    """
    return tuple(text for token in tokens[:4] for text in (token, f"a{token}b", f"a {token} 1\n{token}\n"))


def conversations(*, system: bool) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Return conversations as (role, text), all of which end with the user.

    Args:
        system: whether they begin with a system turn.
    """
    first = (("system", "Answer briefly.\nUse 2 digits."),) if system else ()
    return (
        (*first, ("user", _QUESTION)),
        (*first, ("user", "  1) keep\n\n  2) blanks  ")),
        (*first, ("user", "Hello!"), ("assistant", "Hello. What do you need?"), ("user", _QUESTION)),
        (*first, ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4 \n"), ("user", "价格 👍🏽 ½")),
    )
