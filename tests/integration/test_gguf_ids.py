"""The token ids of a converted `.gguf` file are those of llama.cpp, whatever pre-tokenizer the file names."""

from pathlib import Path

import pytest
from tests.support.tiny import CHATML, SPECIALS, config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tunesmith.engines.llama_cpp import start_llama_cpp
from tunesmith.fetch.gguf import gguf_folder
from tunesmith.fetch.pretokenizer import set_pre_tokenizer
from tunesmith.gguf.write import write_gguf
from tunesmith.proof.probes import TEXTS, control_texts
from tunesmith.tasks.tokenizer_files import load_with_transformers

pytest.importorskip("xllamacpp", reason="needs the extra gguf-proof")


def tokenizer_with_merges_across_words() -> PreTrainedTokenizerFast:
    """Return a tokenizer in whose ids each difference between two pre-tokenizers shows."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=list(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([text for text in TEXTS for _ in range(2)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIALS[-1], pad_token=SPECIALS[-1])
    made.chat_template = CHATML
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "deepseek-v3", "default"])
def test_ids_are_those_of_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    made = tokenizer_with_merges_across_words()
    whole = [made(text).input_ids for text in TEXTS]
    set_pre_tokenizer(made.backend_tokenizer, name)
    shape, folder = config("llama"), tmp_path / "model"
    shape.vocab_size = len(made)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    made.save_pretrained(folder)
    write_gguf(folder, tmp_path / "model.gguf", type="f32")
    backend = load_with_transformers(gguf_folder(tmp_path / "model.gguf"))[0].backend_tokenizer
    ids = {text: backend.encode(text, add_special_tokens=False).ids for text in (*TEXTS, *control_texts(SPECIALS[1:]))}
    engine = start_llama_cpp(tmp_path / "model.gguf", threads=1, slots=1, slot_tokens=64)
    try:
        assert {text: engine.encode(text) for text in ids} == ids
    finally:
        engine.close()
    assert [ids[text] for text in TEXTS] != whole
