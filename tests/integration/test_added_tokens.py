"""`model.add_tokens` in a whole run: tokens are trained, kept by every form of the tuned model, and added to later."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe, save_plain_model

from tunesmith import export_model, open_chatter, run_recipe
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json
from tunesmith.fetch.reference import resolve
from tunesmith.plan.inspect import inspect_rows

LIKELIHOODS = {"metrics": ["perplexity", "token_accuracy"], "primary": "perplexity", "rows": 8, "max_new_tokens": 6}
TRAIN = {"learning_rate": 0.03, "epochs": 2, "examples_per_step": 8}


def write(folder: Path, base: Path | str, method: str, tokens: Any, response: str, **sections: Any) -> Path:
    folder.mkdir()
    data = {
        "source": {"file": "rows.jsonl"}, "task": "completion", "prompt": "{question} <say>", "response": response,
        "split": {"valid": 0.15, "test": 0.2},
    }  # fmt: skip
    model = {"base": str(base), "precision": "fp32", "add_tokens": tokens}
    return recipe(
        folder,
        Path(base),
        model=model,
        data=data,
        tuning={"method": method},
        evaluate=LIKELIHOODS,
        train=TRAIN,
        **sections,
    )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_added_tokens_are_learned_and_kept(tmp_path: Path, method: str) -> None:
    base = save_plain_model(tmp_path / "model", "llama")
    tokens = {"<say>": "Say", "</say>": None}
    promote = {"model": "speaker"} if method == "lora" else None
    file = write(tmp_path / "1", base, method, tokens, "{answer}</say>", promote=promote)
    shown = inspect_rows(file, rows=1)[0]["tokens"]
    assert [token["text"] for token in shown if "say>" in token["text"]] == ["<say>", "</say>"]
    run = run_recipe(file, out=tmp_path / "run")
    verdict = read_json(run.verdict)
    assert verdict["verdict"] == "better"
    assert verdict["conditions"]["added_tokens"] == "</say> <say>"

    reference = f"run:{run.path}"
    chatter = open_chatter(reference)
    answer = chatter.ask("Say one and cat, number 3.", max_new_tokens=8)
    assert "</say>" in answer
    if method == "full":
        assert resolve(reference).added_tokens == ("</say>", "<say>")
        return
    for other in ("speaker@staging", str(export_model(reference, tmp_path / "merged", to="merged").folder)):
        assert open_chatter(other).ask("Say one and cat, number 3.", max_new_tokens=8) == answer
        assert resolve(other).added_tokens == ("</say>", "<say>")

    # Further tuning starts from the trained rows, refuses the tokens that are there, and may add others.
    response = "{answer}</say><end>"
    with raises(RecipeError, "token-exists", "<say>"):
        run_recipe(write(tmp_path / "2", reference, method, ["<say>"], response), out=tmp_path / "refused")
    file = write(tmp_path / "3", reference, method, ["<end>"], response)
    again = run_recipe(file, out=tmp_path / "again", until="train")
    assert resolve(f"run:{again.path}").added_tokens == ("</say>", "<say>", "<end>")
    assert "</say><end>" in open_chatter(f"run:{again.path}").ask("Say one and cat, number 3.", max_new_tokens=8)
