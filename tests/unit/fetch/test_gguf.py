"""A `.gguf` file keeps its pre-tokenizer, and a model of an earlier conversion counts as another one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType
from tests.support.errors import raises
from tests.support.tiny import CHATML, make_tokenizer

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, digest_file, read_json, write_json
from tunesmith.fetch import gguf
from tunesmith.fetch.gguf import converted_digest, gguf_folder
from tunesmith.fetch.reference import CARD, base_card, resolve
from tunesmith.tasks.tokenizer_files import load_plain_tokenizer, load_with_transformers

WIDTH, FEED_FORWARD = 32, 64


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


def write_file(path: Path, *, pre: str | None, architecture: str = "llama") -> Path:
    """Write a random model of one layer with the tokenizer of the tiny models."""
    state = json.loads(make_tokenizer().backend_tokenizer.to_str())
    control = {token["id"] for token in state["added_tokens"] if token["special"]}
    added = {token["id"]: token["content"] for token in state["added_tokens"]}
    tokens = [*sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)]
    tokens += [added[token] for token in range(len(tokens), max(added) + 1)]
    types = [
        TokenType.CONTROL if i in control else TokenType.USER_DEFINED if i in added else TokenType.NORMAL
        for i in range(len(tokens))
    ]
    writer = GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(2)
    writer.add_chat_template(CHATML)
    for name, shape in weights(len(tokens), architecture):
        values = np.random.default_rng(0).standard_normal(shape) * 0.1
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(rows: int, architecture: str) -> list[tuple[str, tuple[int, ...]]]:
    block = {
        "attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,), "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (WIDTH // 2, WIDTH), "attn_v.weight": (WIDTH // 2, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH), "ffn_gate.weight": (FEED_FORWARD, WIDTH),
        "ffn_up.weight": (FEED_FORWARD, WIDTH), "ffn_down.weight": (WIDTH, FEED_FORWARD),
    }  # fmt: skip
    if architecture == "qwen2":
        block |= {"attn_q.bias": (WIDTH,), "attn_k.bias": (WIDTH // 2,), "attn_v.bias": (WIDTH // 2,)}
    outside = [("token_embd.weight", (rows, WIDTH)), ("output_norm.weight", (WIDTH,))]
    return [*outside, *((f"blk.0.{name}", shape) for name, shape in block.items())]


def pieces(folder: Path, text: str) -> list[str]:
    backend = load_with_transformers(folder)[0].backend_tokenizer
    return [text[first:last] for _, (first, last) in backend.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(("pre", "expected"), [("smollm", ["x", "\n\n  ", "1", "2"]), ("gpt-2", ["x", "\n\n ", " 12"])])
def test_a_file_keeps_its_pre_tokenizer(tmp_path: Path, pre: str, expected: list[str]) -> None:
    folder = gguf_folder(write_file(tmp_path / "model.gguf", pre=pre))
    assert pieces(folder, "x\n\n  12") == expected
    plain, full = load_plain_tokenizer(folder), load_with_transformers(folder)[0]
    assert plain is not None
    for text in ("x\n\n  12", "<|im_start|>Say one<|im_end|>", "½ ² 10"):
        ids = full(text).input_ids
        assert (plain(text).input_ids, full.decode(ids)) == (ids, text)
    assert (full.chat_template, full.eos_token) == (CHATML, "<|im_end|>")


@pytest.mark.parametrize(("pre", "added"), [("llama-bpe", 1), ("smaug-bpe", 0)])
def test_the_name_decides_whether_bos_is_added_if_the_file_does_not(tmp_path: Path, pre: str, added: int) -> None:
    tokenizer = load_with_transformers(gguf_folder(write_file(tmp_path / "model.gguf", pre=pre)))[0]
    assert tokenizer("one").input_ids[:-1].count(2) == added


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    file = write_file(tmp_path / "model.gguf", pre="of-next-year")
    with raises(RecipeError, "unknown-pre-tokenizer", "of-next-year", where=str(file)):
        gguf_folder(file)
    assert not list((tmp_path / "cache" / "models").glob("gguf-*/"))


def test_a_pre_tokenizer_that_transformers_replaces_is_refused(tmp_path: Path) -> None:
    with raises(RecipeError, "unknown-pre-tokenizer", "gpt-2"):
        gguf_folder(write_file(tmp_path / "model.gguf", pre="gpt-2", architecture="qwen2"))
    assert gguf_folder(write_file(tmp_path / "other.gguf", pre="qwen2", architecture="qwen2")).is_dir()


def test_a_file_without_a_name_is_split_by_default_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = gguf_folder(write_file(tmp_path / "model.gguf", pre=None))
    assert "warning" in capsys.readouterr().err
    assert pieces(folder, "a+ 1234") == ["a", "+", " ", "123", "4"]


def adapter(folder: Path, base: Any, **card: Any) -> Path:
    folder.mkdir()
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": str(base.path)})
    write_json(folder / CARD, {**base_card(base, folder), **card})
    return folder


def test_an_adapter_of_an_earlier_conversion_is_not_opened_on_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_file(tmp_path / "model.gguf", pre="smollm")
    base = resolve(str(file))
    assert base.digest() == read_json(base.path / MANIFEST)["source"] == converted_digest(digest_file(file))
    assert resolve(str(adapter(tmp_path / "new", base))).base is not None
    old = adapter(tmp_path / "old", base, base_digest=digest_file(file))
    with raises(RecipeError, "base-reconverted", "model.gguf", where=str(old)):
        resolve(str(old))
    # The former conversion is used as long as it is in the cache.
    write_json(base.path.with_name("former") / "config.json", {})
    write_json(base.path.with_name("former") / MANIFEST, {"source": digest_file(file), "files": {}})
    resolve(str(base.path.with_name("former"))).digest()
    assert resolve(str(old)).root.path.name == "former"
    monkeypatch.setattr(gguf, "CONVERSION", 3)
    assert gguf_folder(file) != base.path
