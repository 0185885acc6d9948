"""ChatML for a tokenizer that has none: two tokens and a template, and nothing else changed."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import CHATML, SPECIALS, make_tokenizer

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_json
from tunesmith.core.records import Turn
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import ChatData
from tunesmith.tasks import task_for
from tunesmith.tasks.chatml import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

TURNS = (Turn("user", "Say one <|im_end|>", trained=False), Turn("assistant", "one", trained=True))


def plain(folder: Path, made: Any = None) -> ModelFolder:
    """Return a folder with a tokenizer that knows no markup."""
    (made or make_tokenizer(None, specials=["<|endoftext|>"])).save_pretrained(folder)
    return ModelFolder("org/base", folder)


def chat(tokenizer: TokenizerAdapter) -> Any:
    return task_for(ChatData(task="chat", messages="m", source=FileSource(file="x")), tokenizer)


def test_a_model_without_markup_is_given_two_tokens_and_a_template(tmp_path: Path) -> None:
    base = plain(tmp_path)
    before, tokenizer = TokenizerAdapter.load(tmp_path), load_tokenizer(base, "chatml")
    known = len(before.hf_tokenizer)
    assert tokenizer.new_ids == (known, known + 1)
    assert tokenizer.decode(tokenizer.new_ids) == "<|im_start|><|im_end|>"
    assert tokenizer.special_ids >= set(tokenizer.new_ids)
    assert tokenizer.encode_untrusted("Say one <|im_end|>") == before.encode_untrusted("Say one <|im_end|>")
    assert tokenizer.digest != before.digest
    assert tokenizer.digest == load_tokenizer(base, "chatml").digest


def test_a_chat_is_rendered_and_what_people_write_is_no_markup(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(plain(tmp_path), "chatml")
    task = chat(tokenizer)
    tokens = task.render(TURNS)
    text = "<|im_start|>user\nSay one <|im_end|><|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
    assert tokenizer.decode(tokens.input_ids) == text
    assert [tokens.input_ids.count(i) for i in tokenizer.new_ids] == [2, 2]
    trained = [i for i, learned in zip(tokens.input_ids, tokens.trained, strict=True) if learned]
    assert tokenizer.decode(trained) == "one<|im_end|>"
    assert task.stop_ids == (tokenizer.new_ids[1], tokenizer.eos_id)


def test_tokens_that_are_there_are_used_and_not_added(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(plain(tmp_path, make_tokenizer(None, specials=SPECIALS)), "chatml")
    assert tokenizer.new_ids == ()
    assert chat(tokenizer).render(TURNS).input_ids[0] == SPECIALS.index("<|im_start|>")


def test_a_model_with_a_template_is_refused(tmp_path: Path) -> None:
    base = plain(tmp_path, make_tokenizer(CHATML))
    with pytest.raises(RecipeError, match="has a chat template already") as caught:
        load_tokenizer(base, "chatml")
    assert caught.value.where == "model.chat_markup"
    assert load_tokenizer(base).has_chat_template


def test_a_conversation_begins_as_every_text_does(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    made = make_tokenizer(None, specials=["<s>", "</s>"])
    made.bos_token = "<s>"
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = load_tokenizer(plain(tmp_path, made), "chatml")
    assert tokenizer.decode(chat(tokenizer).render(TURNS).input_ids).startswith("<s><|im_start|>user")


def test_an_adapter_brings_its_markup_along(tmp_path: Path) -> None:
    base = plain(tmp_path / "base")
    write_json(tmp_path / "adapter" / CARD, {"chat_markup": "chatml"})
    write_json(tmp_path / "next" / CARD, {"chat_markup": None})
    adapter = ModelFolder("run:x", tmp_path / "adapter", base)
    onto = ModelFolder("run:y", tmp_path / "next", adapter)
    wanted = load_tokenizer(base, "chatml").digest
    assert load_tokenizer(adapter).digest == load_tokenizer(onto).digest == wanted
    assert load_tokenizer(base).digest != wanted
    assert load_tokenizer(adapter).new_ids == load_tokenizer(onto).new_ids == ()  # the adapter has rows for them
    with pytest.raises(RecipeError, match="run:y"):
        load_tokenizer(onto, "chatml")
