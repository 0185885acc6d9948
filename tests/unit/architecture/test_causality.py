"""Models that attend to later tokens are refused if their configuration shows it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises

from tunesmith.architecture.causality import not_causal_reason, require_causal
from tunesmith.core.errors import RecipeError


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "roberta", "architectures": ["RobertaForCausalLM"], "is_decoder": False},
        {"model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"]},
        {"model_type": "bert"},
        {"model_type": "electra"},
        {"model_type": "xlnet", "architectures": ["XLNetLMHeadModel"]},
        {"model_type": "xlm"},
        {"model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"]},
        {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]},
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        {"model_type": "gemma3_text", "use_bidirectional_attention": "all"},
        {"model_type": "llama", "is_causal": False},
        {"model_type": "mpt", "attn_config": {"prefix_lm": True}},
    ],
)
def test_configurations_of_non_causal_models_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    assert not_causal_reason(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with raises(RecipeError, "not-causal") as caught:
        require_causal(tmp_path)
    assert caught.value.hint
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "some_vlm", "text_config": config}))
    with raises(RecipeError, "not-causal"):
        require_causal(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "roberta", "architectures": ["RobertaForCausalLM"], "is_decoder": True},
        {"model_type": "xlm", "causal": True},
        {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]},
        {"model_type": "gemma3_text", "use_bidirectional_attention": False},
        {"model_type": "gemma3_text", "use_bidirectional_attention": "vision"},
        {"model_type": "gpt2", "architectures": None, "is_causal": True},
        {},
    ],
)
def test_causal_and_undecided_configurations_pass(config: dict[str, Any]) -> None:
    assert not_causal_reason(config) is None
