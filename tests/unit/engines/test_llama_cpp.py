"""A real llama.cpp, in a process, compared with transformers on the same tiny model."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.errors import raises
from tests.support.tiny import one_thread, save_model

from tunesmith.core.errors import TunesmithError
from tunesmith.engines.detect import detect_engine
from tunesmith.engines.llama_cpp import LlamaCpp, align, start_llama_cpp
from tunesmith.engines.transformers_folder import TransformersFolder
from tunesmith.gguf.write import write_gguf

pytestmark = pytest.mark.slow
HI = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say 12 <|im_end|>  words."}]


@pytest.fixture(autouse=True)
def _private_logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # of servers that failed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def reference(folder: Path) -> TransformersFolder:
    return TransformersFolder(folder)


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(folder, file, type="f32")
    started = start_llama_cpp(file, slots=2, slot_tokens=256)
    yield started
    started.close()


def prompt_of(reference: TransformersFolder) -> list[int]:
    return reference.encode_chat(HI) or []


def test_ids_are_those_of_transformers(engine: LlamaCpp, reference: TransformersFolder) -> None:
    assert engine.name.startswith("llama.cpp b")
    for text in ("Say one.", "a 12\n\n  <|im_start|>", "½ é 漢 🙂"):
        assert engine.encode(text) == reference.encode(text)
    assert engine.encode("a", add_special=True) == reference.encode("a", add_special=True)
    assert engine.encode_chat(HI) == reference.encode_chat(HI)


def test_answers_are_those_of_transformers(engine: LlamaCpp, reference: TransformersFolder) -> None:
    with one_thread():
        expected = reference.answer(prompt_of(reference), max_new_tokens=12)
    assert engine.answer(prompt_of(reference), max_new_tokens=12) == expected
    answer = engine.answer_chat(HI, max_new_tokens=12)
    assert answer is not None
    assert expected is not None
    assert (answer.text, answer.stopped, answer.error) == (expected.text, expected.stopped, None)


def test_scores_are_those_of_transformers(engine: LlamaCpp, reference: TransformersFolder) -> None:
    prompt = prompt_of(reference)
    with one_thread():
        greedy = reference.answer(prompt, max_new_tokens=12)
        assert greedy is not None
        # The model's own answer ends within characters; the others differ from it at once, in the middle and at an end.
        for answer in (greedy.ids or (), (7, 8, 9, 2), [*(greedy.ids or ())[:5], 2, 11, 12]):
            expected = reference.token_scores(prompt, answer, 5)
            scores = engine.token_scores(prompt, answer, 5)
            assert scores is not None
            assert expected is not None
            assert [row.keys() for row in scores] == [row.keys() for row in expected]
            for row, other in zip(scores, expected, strict=True):
                assert row == pytest.approx(other, abs=1e-4)


def test_a_prompt_beyond_the_context_of_a_slot_is_an_error_of_its_answer(engine: LlamaCpp) -> None:
    answer = engine.answer([5] * 300, max_new_tokens=2)
    assert answer is not None
    assert answer.error is not None
    assert "300" in answer.error
    assert (answer.text, answer.ids, answer.stopped) == ("", None, False)


def test_a_running_server_is_detected(engine: LlamaCpp, reference: TransformersFolder) -> None:
    found = detect_engine(engine.url, "tiny.gguf")
    assert isinstance(found.engine, LlamaCpp)
    assert (found.model, found.type) == ("tiny.gguf", "f32")
    expected = engine.answer(prompt_of(reference), max_new_tokens=3)
    assert found.engine.answer(prompt_of(reference), max_new_tokens=3) == expected


def test_a_file_that_llama_cpp_cannot_load_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "wrong.gguf").write_bytes(b"no model")
    with raises(TunesmithError, "engine-exited", "invalid magic", where="llama.cpp"):
        start_llama_cpp(tmp_path / "wrong.gguf")


def test_a_server_that_dies_while_it_is_asked_is_an_error_with_its_log(folder: Path, tmp_path: Path) -> None:
    write_gguf(folder, tmp_path / "tiny.gguf", type="f32")
    started = start_llama_cpp(tmp_path / "tiny.gguf", slots=1, slot_tokens=64)
    try:
        assert started.encode("a")
        (server,) = [
            process for process in psutil.Process().children(recursive=True)
            if "tunesmith.engines.llama_cpp_server" in process.cmdline()[1:4] and str(tmp_path) in process.cmdline()[-1]
        ]  # fmt: skip
        server.kill()
        with raises(TunesmithError, "engine-exited", "listening", where="llama.cpp"):
            started.encode("a")
    finally:
        started.close()


def step(token: int) -> dict[str, object]:
    return {"id": token, "top_logprobs": [{"id": token, "logprob": -1.0}]}


@pytest.mark.parametrize(
    ("chosen", "given", "known"),
    [
        ([1, 2, 3], [1, 2, 3], [True, True, True]),
        ([9, 8, 7, 3], [7, 3], [False, False, True, True]),
        ([9, 8, 8, 3], [8, 3], [False, False, False, True]),  # which of the two is not certain
        ([9, 8], [], [False, False]),
        ([1, 9], [1], [True, False]),
    ],
)
def test_probabilities_are_assigned_to_tokens_only_if_that_is_certain(
    chosen: list[int], given: list[int], known: list[bool]
) -> None:
    assert [row is not None for row in align(chosen, [step(token) for token in given])] == known
