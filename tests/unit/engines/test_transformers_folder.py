"""A folder through plain transformers and peft, compared with tunesmith's own reading of the same model."""

import json
from pathlib import Path

import pytest
import torch
from tests.support.errors import raises
from tests.support.tiny import one_thread, save_model, save_seq2seq

from tunesmith.core.errors import TunesmithError
from tunesmith.engines.transformers_folder import TransformersFolder

HI = [{"role": "user", "content": "Say one."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "llama")


def adapter(folder: Path, base: Path) -> Path:
    """Save a LoRA whose B is not zero, so that it changes the answers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_ids_are_those_of_the_text_and_of_the_template(folder: Path) -> None:
    engine = TransformersFolder(folder)
    assert engine.name.startswith("transformers 5")
    ids = engine.encode("Say one.")
    prompt = engine.encode_chat(HI)
    assert ids
    assert prompt
    assert len(prompt) > len(ids)
    text = "<|im_start|>user\nSay one.<|im_end|>\n<|im_start|>assistant\n"
    assert prompt == engine.encode(text)


def test_scores_agree_with_the_greedy_answer(folder: Path) -> None:
    engine = TransformersFolder(folder)
    prompt = engine.encode_chat(HI)
    assert prompt is not None
    with one_thread():
        answer = engine.answer(prompt, max_new_tokens=6)
        assert answer is not None
        assert answer.ids
        scores = engine.token_scores(prompt, answer.ids, 3)
        assert engine.answer_chat(HI, max_new_tokens=6) == answer
    assert scores is not None
    assert len(scores) == len(answer.ids)
    for token, row in zip(answer.ids, scores, strict=True):
        assert max(row, key=lambda one: row[one]) == token
        assert len(row) == 3
        assert all(value < 0 for value in row.values())


def test_a_token_outside_the_top_has_a_score_too(folder: Path) -> None:
    engine = TransformersFolder(folder)
    (row,) = engine.token_scores([5, 6], [7], 1) or [{}]
    (everything,) = engine.token_scores([5, 6], [7], 1000) or [{}]
    assert row.keys() == {7, max(everything, key=lambda one: everything[one])}
    assert row[7] == everything[7]
    assert sum(torch.tensor(list(everything.values())).exp()) == pytest.approx(1.0, abs=1e-5)


def test_an_answer_ends_at_eos_of_the_folder_and_at_the_limit(folder: Path, tmp_path: Path) -> None:
    engine = TransformersFolder(folder)
    prompt = [5, 6, 7]
    with one_thread():
        long = engine.answer(prompt, max_new_tokens=5)
        assert long is not None
        assert long.ids is not None
        assert not long.stopped
        assert len(long.ids) == 5
        stop = long.ids[3]
        copied = save_model(tmp_path, "llama")
        settings = json.loads((copied / "generation_config.json").read_text())
        (copied / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [2, stop]}))
        short = TransformersFolder(copied).answer(prompt, max_new_tokens=5)
    assert short is not None
    assert short.stopped
    assert short.ids == long.ids[: long.ids.index(stop)]


def test_an_adapter_is_opened_on_the_base_that_it_names(folder: Path, tmp_path: Path) -> None:
    made = adapter(tmp_path / "adapter", folder)
    with one_thread():
        base, tuned = TransformersFolder(folder), TransformersFolder(made)
        assert TransformersFolder(made, base=folder).token_scores([5, 6], [7], 3) == tuned.token_scores([5, 6], [7], 3)
        assert base.token_scores([5, 6], [7], 3) != tuned.token_scores([5, 6], [7], 3)


def test_batches_give_the_answers_of_single_prompts(folder: Path) -> None:
    engine = TransformersFolder(folder)
    prompts = [engine.encode(f"Say {'one two ' * count}{count}.") or [] for count in range(20)]
    with one_thread():
        together = dict(engine.answers(prompts, max_new_tokens=5))
        assert [together[place] for place in range(20)] == [engine.answer(ids, max_new_tokens=5) for ids in prompts]


def test_an_encoder_decoder_answers_too(tmp_path: Path) -> None:
    engine = TransformersFolder(save_seq2seq(tmp_path))
    prompt = engine.encode("one two") or []
    with one_thread():
        answer = engine.answer(prompt, max_new_tokens=4)
        assert answer is not None
        assert answer.ids is not None
        scores = engine.token_scores(prompt, answer.ids, 2) or []
    assert [max(row, key=lambda one: row[one]) for row in scores] == list(answer.ids)
    assert engine.encode_chat(HI) == []
    assert engine.answer_chat(HI, max_new_tokens=4) is None


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with raises(TunesmithError, "engine-failed", where=str(tmp_path)):
        TransformersFolder(tmp_path)
