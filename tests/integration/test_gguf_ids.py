"""The token ids of a converted `.gguf` file are those of llama.cpp, whatever pre-tokenizer the file names."""

from pathlib import Path

import pytest
from tests.support.gguf_tokenizers import ENDS, byte_level
from tests.support.tiny import CHATML, config
from transformers import AutoModelForCausalLM

from tunesmith.engines.llama_cpp import start_llama_cpp
from tunesmith.fetch.gguf import gguf_folder
from tunesmith.gguf.write import write_gguf
from tunesmith.proof.probes import TEXTS, control_texts
from tunesmith.tasks.tokenizer_files import load_with_transformers

pytest.importorskip("xllamacpp", reason="needs the extra gguf-proof")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "deepseek-v3", "default"])
def test_ids_are_those_of_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    made, whole = byte_level(name, template=CHATML), byte_level(None)
    shape, folder = config("llama"), tmp_path / "model"
    shape.vocab_size = len(made)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    made.save_pretrained(folder)
    write_gguf(folder, tmp_path / "model.gguf", type="f32")
    backend = load_with_transformers(gguf_folder(tmp_path / "model.gguf"))[0].backend_tokenizer
    ids = {text: backend.encode(text, add_special_tokens=False).ids for text in (*TEXTS, *control_texts(ENDS[1:]))}
    engine = start_llama_cpp(tmp_path / "model.gguf", threads=1, slots=1, slot_tokens=64)
    try:
        assert {text: engine.encode(text) for text in ids} == ids
    finally:
        engine.close()
    assert [ids[text] for text in TEXTS] != [whole(text).input_ids for text in TEXTS]
