"""The rows of the general set: prose, explanations, instructions, code and exercises, in a fixed order.

Everything was written for this set. `written.jsonl` holds the texts, and `exercises.py` makes the short questions.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tunesmith.general.exercises import exercises

_CONTINUE = {
    "en": "Continue this text:", "de": "Setze diesen Text fort:", "fr": "Continue ce texte :",
    "es": "Continúa este texto:", "it": "Continua questo testo:", "pt": "Continua este texto:",
    "nl": "Ga verder met deze tekst:", "ru": "Продолжи этот текст:", "zh": "续写下面的文字:",
    "ja": "次の文章の続きを書いてください。", "pl": "Kontynuuj ten tekst:", "tr": "Bu metni devam ettir:",
}  # fmt: skip
_UNSPACED = ("zh", "ja")  # languages without spaces between sentences


def rows() -> Iterator[dict[str, str]]:
    """Yield the rows {kind, language, prompt, response, text}.

    `prompt` and `response` are a request and its answer; `text` is both as one document, for models without turns.
    """
    for line in (Path(__file__).parent / "written.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "prose":
            yield _prose(row["language"], row["opening"], row["rest"])
        else:
            yield _answered(row["kind"], row["language"], row["prompt"], row["response"])
    for kind, question, answer in exercises():
        yield _answered(kind, "en", question, answer)


def _prose(language: str, opening: str, rest: str) -> dict[str, str]:
    text = f"{opening}{'' if language in _UNSPACED else ' '}{rest}"
    prompt = f"{_CONTINUE[language]}\n\n{opening}"
    return {"kind": "prose", "language": language, "prompt": prompt, "response": rest, "text": text}


def _answered(kind: str, language: str, prompt: str, response: str) -> dict[str, str]:
    text = f"Question: {prompt}\nAnswer: {response}"
    return {"kind": kind, "language": language, "prompt": prompt, "response": response, "text": text}
