"""The code of a model card runs as it is, and gives the answer that the model was judged with."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from tests.support import tiny
from tests.support.tuned import tuned_model

from tunesmith.export.card import write_card
from tunesmith.fetch.reference import resolve
from tunesmith.inference.chatter import open_chatter

CHAT = {"task": "chat", "system": 'Answer "briefly".\nUse {unit}.', "prompt": "Say {mr}.\n\nNow", "response": "{ref}"}
COMPLETION = {"task": "completion", "prompt": "Say {mr} in {unit}:\n", "response": "{ref}"}
QUESTION = {"mr": 'one "and" two', "unit": "red"}


@pytest.mark.parametrize("data", [CHAT, COMPLETION])
def test_code_of_the_card_gives_the_answer_of_generate(data: dict[str, Any], tmp_path: Path) -> None:
    with tiny.one_thread():
        model = tiny.save_model(tmp_path / "model", "llama")
        folder = Path(tuned_model(model, tmp_path / "tuned", {**data, "max_tokens_per_example": 64}))
        chatter = open_chatter(str(folder), row={"unit": QUESTION["unit"]})
        expected = chatter.ask(QUESTION["mr"], max_new_tokens=12)
        card = write_card(folder, resolve(str(folder)), to="merged", path=str(folder)).read_text(encoding="utf-8")
        found = card_output(card.replace("max_new_tokens=256", "max_new_tokens=12"))
    assert found.strip() == expected.strip()


def card_output(card: str) -> str:
    """Run the prompt and the code for transformers of a card, with an example in the place of the dots."""
    tokens = MarkdownIt("commonmark").parse(card.split("\n---\n", 1)[1])
    prompt, run, *_ = [token.content for token in tokens if token.type == "fence" and token.info == "python"]
    for name, value in QUESTION.items():
        run = run.replace(f'{name}="..."', f"{name}={value!r}")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(f"{prompt}\n{run}", {})
    return output.getvalue()
