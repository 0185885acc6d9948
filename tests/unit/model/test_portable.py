"""A portable folder: the same model and tokenizer in this version of transformers, and the keys that others read."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import save_model

from tunesmith.model.portable import make_portable

LLAMA_3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def change_json(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "rope", "older"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 12345.0}, {"rope_theta": 12345.0}),
        ("llama", {**LLAMA_3, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LLAMA_3}),
        (
            "gemma3_text",
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 5e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        (
            "gpt_neox",
            {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.5},
            {"rotary_emb_base": 5e3, "rotary_pct": 0.5},
        ),
        ("gpt2", None, {}),
    ],
)
def test_older_keys_say_the_same(tmp_path: Path, kind: str, rope: dict[str, Any] | None, older: dict[str, Any]) -> None:
    from transformers import AutoConfig

    folder = save_model(tmp_path / "model", kind)
    if rope is not None:
        change_json(folder / "config.json", {"rope_parameters": rope})
    before = AutoConfig.from_pretrained(folder)
    make_portable(folder)
    written, after = json.loads((folder / "config.json").read_text()), AutoConfig.from_pretrained(folder)
    assert {key: written[key] for key in older} == older
    assert written["torch_dtype"] == written["dtype"] == "float32"
    assert getattr(after, "rope_parameters", None) == getattr(before, "rope_parameters", None)
    assert after.dtype == before.dtype


def test_the_tokenizer_is_the_same_and_its_template_in_both_places(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_model(tmp_path / "model", "llama")
    change_json(folder / "tokenizer_config.json", {"extra_special_tokens": ["<|im_start|>"]})
    before = AutoTokenizer.from_pretrained(folder)
    make_portable(folder)
    settings, after = json.loads((folder / "tokenizer_config.json").read_text()), AutoTokenizer.from_pretrained(folder)
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|im_start|>"]
    assert settings["chat_template"] == (folder / "chat_template.jinja").read_text() == after.chat_template
    assert after.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()
    assert after.all_special_tokens == before.all_special_tokens


def test_sampling_of_the_base_is_left_out(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "llama")
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2, "max_length": 64}
    change_json(folder / "generation_config.json", sampling)
    make_portable(folder)
    assert json.loads((folder / "generation_config.json").read_text()).items() >= {"eos_token_id": 2}.items()
    assert not {"do_sample", "temperature", "top_p"} & set(json.loads((folder / "generation_config.json").read_text()))
