"""llama.cpp itself: a good file is proved, and each fault of a GGUF file fails the check that it belongs to.

The faults are those that users reported of files by other converters.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.llama_cpp import LlamaCpp
from tests.support.tiny import CHATML, change_weights, make_tokenizer, one_thread, save_model

from tunesmith.fetch.reference import resolve
from tunesmith.gguf.write import write_gguf
from tunesmith.proof.checks import check_ids
from tunesmith.proof.prove import prove
from tunesmith.proof.questions import questions_about
from tunesmith.proof.record import Proof
from tunesmith.proof.text import proof_text

# llama.cpp finds the ends of turns that it knows by their names, and would repair a wrong eos of ChatML.
_MARKUP = CHATML.replace("<|im_start|>", "<turn>").replace("<|im_end|>", "</turn>")
_REFUSING = "{% if messages|length > 4 %}{{ raise_exception('too many') }}{% endif %}" + _MARKUP
_TYPES = "tokenizer.ggml.token_type"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose attention depends on positions and whose answers end, with a markup of its own."""
    folder = save_model(tmp_path_factory.mktemp("model") / "llama", "llama")
    make_tokenizer(_MARKUP, specials=("<|end|>", "<turn>", "</turn>")).save_pretrained(folder)

    def change(name: str, tensor: Any) -> Any:
        if name == "lm_head.weight":
            tensor[2] *= 2
        return 6 * tensor if "q_proj" in name or "k_proj" in name else tensor

    change_weights(folder, change)
    return folder


@contextmanager
def llama_cpp(folder: Path, type: str = "f32", **metadata: Any) -> Iterator[LlamaCpp]:
    """Write a folder to a GGUF file, with other metadata, and run it."""
    write_gguf(folder, folder / "model.gguf", type=type, metadata=metadata)
    with LlamaCpp(folder / "model.gguf", context=512) as engine, one_thread():
        yield engine


def prove_file(model: Path, folder: Path, type: str = "f32", **metadata: Any) -> Proof:
    """Prove a file that is made of a folder."""
    with llama_cpp(folder, type, **metadata) as engine:
        return prove(resolve(str(model)), engine, type=type)


@pytest.mark.parametrize("type", ["f32", "f16"])
def test_a_good_file_is_proved(model: Path, tmp_path: Path, type: str) -> None:
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    proof = prove_file(model, tmp_path, type)
    assert proof.passed, proof_text(proof)
    found = {check.name: check.status for check in proof.checks}
    assert found == dict.fromkeys(("ids", "template", "logits", "answers"), "passed") | {"verdict": "not possible"}


@pytest.mark.parametrize(
    ("metadata", "failing"),
    [
        ({"llama.rope.freq_base": 100.0}, {"logits", "answers"}),
        ({"llama.attention.layer_norm_rms_epsilon": 1e-3}, {"logits"}),
        ({_TYPES: [1] * 320}, {"ids", "template"}),
        ({"tokenizer.ggml.add_bos_token": True}, {"ids"}),
        ({"tokenizer.chat_template": "{{ messages[-1].content }}"}, {"template"}),
        ({"tokenizer.chat_template": _REFUSING}, {"template"}),
        ({"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 0}, {"answers"}),
    ],
    ids=["rope", "epsilon", "types", "bos", "template", "refusing template", "eos"],
)
def test_each_fault_of_a_file_fails_its_check(
    model: Path, tmp_path: Path, metadata: dict[str, Any], failing: set[str]
) -> None:
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    proof = prove_file(model, tmp_path, **metadata)
    assert failing <= {check.name for check in proof.failed}, proof_text(proof)


def test_queries_and_keys_in_the_order_of_transformers_fail_logits(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)

    def undo(name: str, tensor: Any) -> Any:
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads is None:
            return tensor
        pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(tensor.shape)

    change_weights(tmp_path, undo)
    proof = prove_file(model, tmp_path)
    assert {check.name for check in proof.failed} == {"logits", "answers"}, proof_text(proof)


@pytest.fixture(scope="module")
def many_words(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the vocabulary of a real one."""
    folder = save_model(tmp_path_factory.mktemp("words") / "llama", "llama", vocab_size=49152)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(smollm2 / name, folder)
    return folder


@pytest.mark.parametrize("pre", ["smollm", "default", "gpt-2", "llama-bpe", "qwen2"])
def test_only_the_right_pre_tokenizer_gives_the_ids_of_the_probes(many_words: Path, tmp_path: Path, pre: str) -> None:
    shutil.copytree(many_words, tmp_path, dirs_exist_ok=True)
    with llama_cpp(tmp_path, **{"tokenizer.ggml.pre": pre}) as engine:
        check = check_ids(engine, questions_about(resolve(str(many_words)), "no run"))
    assert check.status == ("passed" if pre == "smollm" else "failed"), check.details
