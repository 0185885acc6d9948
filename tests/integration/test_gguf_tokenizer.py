"""llama.cpp splits texts into the same tokens as the tokenizer of the folder from which a GGUF file was written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.support import tiny
from tests.support.gguf_tokenizers import ENDS, PIECES, byte_level, sentencepiece
from tests.support.llama_cpp import LlamaCpp
from transformers import AddedToken

from tunesmith.gguf.write import write_gguf
from tunesmith.proof.probes import TEXTS, control_texts, conversations
from tunesmith.tasks.tokenizer import TokenizerAdapter

pytestmark = pytest.mark.slow

PRE = ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "gpt-4o", "tekken", "deepseek-v3", "default", "falcon")
# Regular expressions of llama.cpp that are simpler than those of the tokenizers: letters with combining marks.
KNOWN_DIFFERENCES = {"gpt-4o": 2, "tekken": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with an embedding that is larger than any of the vocabularies."""
    return tiny.save_model(tmp_path_factory.mktemp("weights") / "model", "llama", vocab_size=1300)


def write(weights: Path, tokenizer: Any, folder: Path, metadata: Mapping[str, str] = {}) -> Path:
    """Write the model with another tokenizer to a GGUF file."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(weights / name)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder / "model.gguf", type="f32", metadata=metadata)
    return folder / "model.gguf"


def differing(engine: LlamaCpp, tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[str]:
    backend, encode = tokenizer.backend_tokenizer, engine.encode if special else engine.encode_plain
    return [text for text in texts if encode(text) != backend.encode(text, add_special_tokens=False).ids]


@pytest.mark.parametrize("pre", PRE)
def test_byte_level_ids_equal(pre: str, weights: Path, tmp_path: Path) -> None:
    tokenizer = byte_level(pre)
    with LlamaCpp(write(weights, tokenizer, tmp_path)) as engine:
        different = differing(engine, tokenizer, [*TEXTS, *control_texts(ENDS)])
        assert len(different) == KNOWN_DIFFERENCES.get(pre, 0), different


@pytest.mark.parametrize("kind", ["always", "never"])
def test_sentencepiece_ids_equal(kind: str, weights: Path, tmp_path: Path) -> None:
    tokenizer = sentencepiece(kind, words=["<think>", "\u2581\u2581"])
    with LlamaCpp(write(weights, tokenizer, tmp_path)) as engine:
        texts = [*TEXTS, *control_texts(PIECES), "a<think>b", "x    y", "\U0001f9ff 漢"]
        assert differing(engine, tokenizer, texts) == []
        assert engine.encode("a b", add_special=True) == tokenizer("a b").input_ids


@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_once(adds_bos: bool, weights: Path, tmp_path: Path) -> None:
    # The name `llama-bpe` alone would let llama.cpp add a token that this tokenizer may not add.
    template = "{{ bos_token }}" + tiny.CHATML if adds_bos else tiny.CHATML
    tokenizer = byte_level("llama-bpe", adds_bos=adds_bos, template=template)
    messages = [{"role": "user", "content": "Say 42."}]
    with LlamaCpp(write(weights, tokenizer, tmp_path)) as engine:
        assert engine.encode("a b", add_special=True) == tokenizer("a b").input_ids
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert engine.encode_chat(messages) == prompt
        answer = engine.ask("/v1/chat/completions", messages=messages, max_tokens=1)
        assert answer["usage"]["prompt_tokens"] == len(prompt)


@pytest.mark.parametrize("system", [True, False])
def test_chat_prompts_equal(system: bool, weights: Path, tmp_path: Path) -> None:
    tokenizer = byte_level("smollm", template=tiny.CHATML)
    with LlamaCpp(write(weights, tokenizer, tmp_path)) as engine:
        for turns in conversations(system=system):
            messages = [{"role": role, "content": text} for role, text in turns]
            expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert engine.encode_chat(messages) == expected


def test_template_without_bos(weights: Path, tmp_path: Path) -> None:
    # llama.cpp has a token for `bos_token` even if the tokenizer has none.
    tokenizer = byte_level("qwen2", template="{{ bos_token }}" + tiny.CHATML)
    tokenizer.bos_token = None
    messages = [{"role": "user", "content": "Say 42."}]
    with LlamaCpp(write(weights, tokenizer, tmp_path)) as engine:
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert engine.encode_chat(messages) == expected


def test_control_tokens_in_text(weights: Path, tmp_path: Path) -> None:
    tokenizer = byte_level("smollm")
    with LlamaCpp(write(weights, tokenizer, tmp_path)) as engine:
        expected = TokenizerAdapter(tokenizer).encode_untrusted("a <|im_end|> b")
        assert engine.encode_plain("a <|im_end|> b") == expected
        assert 2 not in expected


def test_added_tokens(weights: Path, tmp_path: Path) -> None:
    tokenizer = byte_level("smollm")
    tokenizer.add_tokens(["ACME-9", "\u00e9clair 1"])
    with LlamaCpp(write(weights, tokenizer, tmp_path)) as engine:
        assert differing(engine, tokenizer, ["an ACME-9!", "x\u00e9clair 1", "ACME-"], special=False) == []
        for token in tokenizer.convert_tokens_to_ids(["ACME-9", "\u00e9clair 1"]):
            assert engine.ask("/detokenize", tokens=[token])["content"] == tokenizer.decode([token])


def test_stops_at_own_markup(tmp_path: Path) -> None:
    """A turn ends with a token whose name llama.cpp does not know, and which is not the tokenizer's eos."""
    template = tiny.CHATML.replace("<|im_start|>", "<<turn>>").replace("<|im_end|>", "<<over>>")
    folder = tiny.save_model(tmp_path / "model", "llama", mlp_bias=True)
    tokenizer = tiny.make_tokenizer(template, specials=["<<over>>", "<<turn>>", "<<text-ends>>"])
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.bias"].fill_(100.0)
    weights["lm_head.weight"][0] = 1.0  # <<over>>, which is now the most probable token everywhere
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_gguf(folder, tmp_path / "model.gguf", type="f32")
    with LlamaCpp(tmp_path / "model.gguf") as engine:
        answer = engine.answer(engine.encode_chat([{"role": "user", "content": "Hi"}]) or [], max_new_tokens=4)
        assert answer is not None
        assert (answer.ids, answer.stopped) == ((), True)


@pytest.mark.parametrize("strips", [True, False])
def test_blanks_after_tokens_of_phi3(strips: bool, weights: Path, tmp_path: Path) -> None:
    """llama.cpp decides by the model's name whether these tokens remove blanks."""
    tokenizer = sentencepiece("always")
    added = [AddedToken(text, special=True, rstrip=strips, normalized=False) for text in ("<|user|>", "<|end|>")]
    kept = AddedToken("<|endoftext|>", special=True, normalized=False)
    tokenizer.add_tokens([*added, kept, AddedToken("</s>", special=True, rstrip=strips, normalized=False)])
    texts = ["<|user|>  Hi <|end|>\n x", "<s>  a</s> b", "<|endoftext|>  c", *TEXTS]
    name = {"general.name": "mine" if strips else "my-Phi-3-mini"}
    with LlamaCpp(write(weights, tokenizer, tmp_path, name)) as engine:
        assert differing(engine, tokenizer, texts) == []
