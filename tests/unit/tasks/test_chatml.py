"""ChatML for a tokenizer that has none: two tokens and a template, and nothing else changed."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import CHATML, SPECIALS, tokenizer

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_json
from tunesmith.core.records import Turn
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import ChatData
from tunesmith.tasks import task_for
from tunesmith.tasks.chatml import codec_of
from tunesmith.tasks.tokenizer import Codec

TURNS = (Turn("user", "Say one <|im_end|>", trained=False), Turn("assistant", "one", trained=True))


def plain(folder: Path, made: Any = None) -> ModelFolder:
    """Return a folder with a tokenizer that knows no markup."""
    (made or tokenizer(None, specials=["<|endoftext|>"])).save_pretrained(folder)
    return ModelFolder("org/base", folder)


def chat(codec: Codec) -> Any:
    return task_for(ChatData(task="chat", messages="m", source=FileSource(file="x")), codec)


def test_a_model_without_markup_is_given_two_tokens_and_a_template(tmp_path: Path) -> None:
    base = plain(tmp_path)
    before, codec = Codec.load(tmp_path), codec_of(base, "chatml")
    known = len(before.tokenizer)
    assert codec.new_ids == (known, known + 1)
    assert codec.decode(codec.new_ids) == "<|im_start|><|im_end|>"
    assert codec.special_ids >= set(codec.new_ids)
    assert codec.personal("Say one <|im_end|>") == before.personal("Say one <|im_end|>")
    assert codec.digest != before.digest
    assert codec.digest == codec_of(base, "chatml").digest


def test_a_chat_is_rendered_and_what_people_write_is_no_markup(tmp_path: Path) -> None:
    codec = codec_of(plain(tmp_path), "chatml")
    task = chat(codec)
    tokens = task.render(TURNS)
    text = "<|im_start|>user\nSay one <|im_end|><|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
    assert codec.decode(tokens.input_ids) == text
    assert [tokens.input_ids.count(i) for i in codec.new_ids] == [2, 2]
    trained = [i for i, learned in zip(tokens.input_ids, tokens.trained, strict=True) if learned]
    assert codec.decode(trained) == "one<|im_end|>"
    assert task.stop_ids == (codec.new_ids[1], codec.eos_id)


def test_tokens_that_are_there_are_used_and_not_added(tmp_path: Path) -> None:
    codec = codec_of(plain(tmp_path, tokenizer(None, specials=SPECIALS)), "chatml")
    assert codec.new_ids == ()
    assert chat(codec).render(TURNS).input_ids[0] == SPECIALS.index("<|im_start|>")


def test_a_model_with_a_template_is_refused(tmp_path: Path) -> None:
    base = plain(tmp_path, tokenizer(CHATML))
    with pytest.raises(RecipeError, match="has a chat template already") as caught:
        codec_of(base, "chatml")
    assert caught.value.where == "model.chat_markup"
    assert codec_of(base).has_template


def test_a_conversation_begins_as_every_text_does(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    made = tokenizer(None, specials=["<s>", "</s>"])
    made.bos_token = "<s>"
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    codec = codec_of(plain(tmp_path, made), "chatml")
    assert codec.decode(chat(codec).render(TURNS).input_ids).startswith("<s><|im_start|>user")


def test_an_adapter_brings_its_markup_along(tmp_path: Path) -> None:
    base = plain(tmp_path / "base")
    write_json(tmp_path / "adapter" / CARD, {"chat_markup": "chatml"})
    write_json(tmp_path / "next" / CARD, {"chat_markup": None})
    adapter = ModelFolder("run:x", tmp_path / "adapter", base)
    onto = ModelFolder("run:y", tmp_path / "next", adapter)
    wanted = codec_of(base, "chatml").digest
    assert codec_of(adapter).digest == codec_of(onto).digest == wanted
    assert codec_of(base).digest != wanted
    assert codec_of(adapter).new_ids == codec_of(onto).new_ids == ()  # the adapter has rows for them
    with pytest.raises(RecipeError, match="run:y"):
        codec_of(onto, "chatml")
