"""Adding ChatML to a tokenizer without a chat template: two tokens and the template, and no other change."""

from pathlib import Path
from typing import Any

from tests.support.errors import raises
from tests.support.tiny import CHATML, SPECIALS, make_tokenizer

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_json
from tunesmith.core.records import Turn
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.model import Model
from tunesmith.recipe.schema import ChatData
from tunesmith.tasks import task_for
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

CHATML_ADDED = Model(base="org/base", chat_markup="chatml")
TURNS = (Turn("user", "Say one <|im_end|>", trained=False), Turn("assistant", "one", trained=True))


def without_template(folder: Path, tokenizer: Any = None) -> ModelFolder:
    """Return a model folder whose tokenizer has no chat template."""
    (tokenizer or make_tokenizer(None, specials=["<|endoftext|>"])).save_pretrained(folder)
    return ModelFolder("org/base", folder)


def chat(tokenizer: TokenizerAdapter) -> Any:
    return task_for(ChatData(task="chat", messages="m", source=FileSource(file="x")), tokenizer)


def test_two_tokens_and_the_template_are_added(tmp_path: Path) -> None:
    base = without_template(tmp_path)
    before, tokenizer = TokenizerAdapter.load(tmp_path), load_tokenizer(base, CHATML_ADDED)
    size = len(before.hf_tokenizer)
    assert tokenizer.new_ids == (size, size + 1)
    assert tokenizer.decode(tokenizer.new_ids) == "<|im_start|><|im_end|>"
    assert tokenizer.special_ids >= set(tokenizer.new_ids)
    assert tokenizer.encode_untrusted("Say one <|im_end|>") == before.encode_untrusted("Say one <|im_end|>")
    assert tokenizer.digest != before.digest
    assert tokenizer.digest == load_tokenizer(base, CHATML_ADDED).digest


def test_chat_is_rendered_and_users_text_stays_plain(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(without_template(tmp_path), CHATML_ADDED)
    task = chat(tokenizer)
    tokens = task.render(TURNS)
    text = "<|im_start|>user\nSay one <|im_end|><|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
    assert tokenizer.decode(tokens.input_ids) == text
    assert [tokens.input_ids.count(i) for i in tokenizer.new_ids] == [2, 2]
    trained_ids = [i for i, trained in zip(tokens.input_ids, tokens.trained, strict=True) if trained]
    assert tokenizer.decode(trained_ids) == "one<|im_end|>"
    assert task.stop_ids == (tokenizer.new_ids[1], tokenizer.eos_id)


def test_existing_tokens_are_reused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(without_template(tmp_path, make_tokenizer(None, specials=SPECIALS)), CHATML_ADDED)
    assert tokenizer.new_ids == ()
    assert chat(tokenizer).render(TURNS).input_ids[0] == SPECIALS.index("<|im_start|>")


def test_model_with_a_chat_template_is_refused(tmp_path: Path) -> None:
    base = without_template(tmp_path, make_tokenizer(CHATML))
    with raises(RecipeError, "has-chat-template", where="model.chat_markup"):
        load_tokenizer(base, CHATML_ADDED)
    assert load_tokenizer(base).has_chat_template


def test_conversation_begins_with_bos_if_every_text_does(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    with_bos = make_tokenizer(None, specials=["<s>", "</s>"])
    with_bos.bos_token = "<s>"
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = load_tokenizer(without_template(tmp_path, with_bos), CHATML_ADDED)
    assert tokenizer.decode(chat(tokenizer).render(TURNS).input_ids).startswith("<s><|im_start|>user")


def test_adapter_trained_with_chatml_keeps_it(tmp_path: Path) -> None:
    base = without_template(tmp_path / "base")
    write_json(tmp_path / "adapter" / CARD, {"chat_markup": "chatml"})
    write_json(tmp_path / "next" / CARD, {"chat_markup": None})
    adapter = ModelFolder("run:x", tmp_path / "adapter", base)
    onto = ModelFolder("run:y", tmp_path / "next", adapter)
    digest = load_tokenizer(base, CHATML_ADDED).digest
    assert load_tokenizer(adapter).digest == load_tokenizer(onto).digest == digest
    assert load_tokenizer(base).digest != digest
    assert (
        load_tokenizer(adapter).new_ids == load_tokenizer(onto).new_ids == ()
    )  # the adapter has embedding rows for them
    with raises(RecipeError, "has-chat-template", "run:y"):
        load_tokenizer(onto, CHATML_ADDED)
