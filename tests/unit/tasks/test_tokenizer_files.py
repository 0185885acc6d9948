"""Tokenizers loaded without transformers equal those loaded with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import make_tokenizer

from tunesmith.tasks.tokenizer import TokenizerAdapter
from tunesmith.tasks.tokenizer_files import PLAIN_MODEL_TYPES, PlainTokenizer, load_plain_tokenizer

TRUNCATION = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
TEXT = "Say <|im_end|> one  <|im_start|>user\nthen two. é \U0001f600 12"


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "model"))


def change_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `...` removes a key."""
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}), encoding="utf-8")


@pytest.mark.parametrize("kind", sorted(PLAIN_MODEL_TYPES))
def test_plain_tokenizer_equals_that_of_transformers(folder: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    change_json(folder / "config.json", model_type=kind)
    change_json(folder / "tokenizer_config.json", bos_token="<|im_start|>")
    plain, theirs = load_plain_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert plain is not None
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "special_tokens_map", "chat_template"):
        assert getattr(plain, name) == getattr(theirs, name)
    assert plain.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert str(plain.added_tokens_decoder) == str(theirs.added_tokens_decoder)
    ids = theirs(TEXT).input_ids
    assert plain(TEXT).input_ids == ids
    settings = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    assert plain.decode(ids, **settings) == theirs.decode(ids, **settings)


def test_the_settings_of_version_4_are_plain(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    change_json(folder / "tokenizer_config.json", **settings)
    test_plain_tokenizer_equals_that_of_transformers(folder, "llama")


def test_adapters_of_both_are_equal(folder: Path, tmp_path: Path) -> None:
    light, full = TokenizerAdapter.load(folder), TokenizerAdapter(make_tokenizer())
    assert isinstance(light._tokenizer, PlainTokenizer)
    assert not isinstance(full._tokenizer, PlainTokenizer)
    for name in ("digest", "control_ids", "special_ids", "markup_ids", "prefix_ids", "eos_id", "pad_id", "has_encoder"):
        assert getattr(light, name) == getattr(full, name)
    messages = [{"role": "user", "content": "one"}]
    assert light.apply_chat_template(messages, generation=True) == full.apply_chat_template(messages, generation=True)
    light.hf_tokenizer.save_pretrained(tmp_path / "saved")
    assert TokenizerAdapter.load(tmp_path / "saved").digest == light.digest


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("tokenizer_config.json", {"eos_token": {"content": "<|im_end|>"}}),
        ("tokenizer_config.json", {"eos_token": "<new>"}),
        ("tokenizer_config.json", {"chat_template": "x"}),
        ("tokenizer_config.json", {"backend": ...}),
        ("tokenizer_config.json", {"auto_map": {}}),
        ("config.json", {"model_type": "t5"}),
        ("config.json", {"model_type": "qwen2"}),
        ("config.json", {"is_encoder_decoder": True}),
        ("tokenizer.json", {"truncation": TRUNCATION}),
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer.json", {"model": {}}),
    ],
)  # fmt: skip
def test_unknown_settings_are_left_to_transformers(folder: Path, name: str, changes: dict[str, Any]) -> None:
    assert load_plain_tokenizer(folder) is not None
    change_json(folder / name, **changes)
    assert load_plain_tokenizer(folder) is None


@pytest.mark.parametrize("name", ["special_tokens_map.json", "chat_template.json"])
def test_additional_files_are_left_to_transformers(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    assert load_plain_tokenizer(folder) is None
