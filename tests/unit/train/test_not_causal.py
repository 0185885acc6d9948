"""A model that sees later tokens is refused before the first step and before a verdict."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import make_tokenizer, recipe

from tunesmith.core.errors import RecipeError
from tunesmith.pipeline.runner import run_recipe


@pytest.fixture
def roberta(tmp_path: Path) -> Path:
    """Write an encoder that transformers opens as a language model."""
    from transformers import RobertaConfig, RobertaForCausalLM

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    shape = RobertaConfig(vocab_size=320, max_position_embeddings=300, pad_token_id=2, **small)
    RobertaForCausalLM(shape).save_pretrained(tmp_path / "roberta")
    make_tokenizer().save_pretrained(tmp_path / "roberta")
    return tmp_path / "roberta"


def test_train_and_evaluate_refuse_a_non_causal_model(
    tmp_path: Path, roberta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise the check of the configuration would refuse it first.
    monkeypatch.setattr("tunesmith.architecture.causality.not_causal_reason", lambda _: None)
    metrics = {"metrics": ["perplexity"], "primary": "perplexity", "rows": 4, "max_new_tokens": 8}
    train = {"learning_rate": 0.01, "max_steps": 1, "examples_per_step": 2}
    file = recipe(tmp_path, roberta, tuning={"method": "full"}, evaluate=metrics, train=train)
    with raises(RecipeError, "not-causal") as caught:
        run_recipe(file, out=tmp_path / "run")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run" / "train" / "metrics.jsonl").exists()
    no_check: Any = lambda *_: None  # noqa: E731
    monkeypatch.setattr("tunesmith.train.setup.require_causal_attention", no_check)
    with raises(RecipeError, "not-causal"):
        run_recipe(file, out=tmp_path / "run")
    assert not (tmp_path / "run" / "evaluate" / "verdict.json").exists()
