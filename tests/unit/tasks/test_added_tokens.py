"""Tokens of `model.add_tokens` are words: text contains them, and they are kept by every model trained with them."""

from copy import deepcopy
from pathlib import Path

import pytest
from tests.support.errors import raises, row_problem
from tests.support.tiny import make_tokenizer
from tests.unit.tasks.families import FAMILIES, Family

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_json
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.model import Model
from tunesmith.recipe.schema import ChatData, CompletionData
from tunesmith.tasks import task_for
from tunesmith.tasks.added_tokens import with_added_tokens
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

TOKENS = {"<sql>": "one two", "</sql>": None, "[two words]": None}


def with_added(family: Family) -> TokenizerAdapter:
    return with_added_tokens(TokenizerAdapter(deepcopy(family.hf_tokenizer)), TOKENS)


def base_folder(folder: Path) -> ModelFolder:
    make_tokenizer(None, specials=["<|endoftext|>"]).save_pretrained(folder)
    return ModelFolder("org/base", folder)


def adding(*tokens: str, chat_markup: str | None = None) -> Model:
    return Model.model_validate({"base": "org/base", "add_tokens": tokens, "chat_markup": chat_markup})


def adapter(folder: Path, base: ModelFolder, **card: object) -> ModelFolder:
    write_json(folder / CARD, card)
    return ModelFolder(f"run:{folder.name}", folder, base)


def test_text_has_added_tokens_and_no_control_tokens(family: Family) -> None:
    tokenizer = with_added(family)
    added = set(tokenizer.new_ids)
    assert added.isdisjoint(tokenizer.control_ids)
    controls = "".join(token.content for token in family.hf_tokenizer.added_tokens_decoder.values())
    ids = tokenizer.encode_untrusted(f"Say <sql> one</sql>, then [two words]. {controls}")
    assert [tokenizer.decode([i]) for i in ids if i in added] == ["<sql>", "</sql>", "[two words]"]
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.find_control_token("Say <sql>") is None


def test_rows_start_from_the_tokens_of_a_text() -> None:
    before, tokenizer = FAMILIES["chatml"].tokenizer, with_added(FAMILIES["chatml"])
    first, *others = (tokenizer.new_rows[tokenizer.encode_untrusted(token)[0]] for token in TOKENS)
    assert list(first) == before.encode_untrusted("one two")
    assert others == [(), ()]


def test_prompt_and_answer_are_rendered_with_added_tokens(family: Family) -> None:
    tokenizer = with_added(family)
    source = FileSource(file="x")
    completion = CompletionData(source=source, task="completion", prompt="{q} <sql>", response="{a}</sql>")
    chat = ChatData(source=source, task="chat", prompt="{q} <sql>", response="{a}</sql>")
    row = {"q": "Say one", "a": "one"}
    # The template of `system-inside` writes a blank before </s>, which its tokenizer doubles after an added token.
    for data in (completion,) if family.name == "system-inside" else (completion, chat):
        task = task_for(data, tokenizer)
        turns = task.parse(row)
        tokens = task.render(turns)
        opening, closing = (tokens.input_ids.index(tokenizer.token_id(token)) for token in ("<sql>", "</sql>"))
        assert not tokens.trained[opening]
        assert tokens.trained[closing]
        assert opening < len(task.encode_prompt(turns)) <= closing
        assert task.reference(turns).strip() == "one</sql>"


def test_row_whose_blanks_the_tokenizer_changes_is_refused_with_its_spelling() -> None:
    tokenizer = with_added(FAMILIES["instructions-always"])
    data = CompletionData(source=FileSource(file="x"), task="completion", prompt="{q}", response="{a}")
    task = task_for(data, tokenizer)
    with row_problem("decode-mismatch") as caught:
        task.render(task.parse({"q": "Say one", "a": "go<sql>one"}))
    assert "go<sql> one" in caught.value.hint
    task.render(task.parse({"q": "Say one", "a": "go<sql> one"}))


def test_ids_do_not_depend_on_the_order_in_the_recipe(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    first, second = (load_tokenizer(base, adding(*tokens)) for tokens in (("<b>", "<a>", "<c>"), ("<c>", "<b>", "<a>")))
    assert first.new_ids == second.new_ids
    assert first.digest == second.digest
    assert first.decode(first.new_ids) == "<a><b><c>"


@pytest.mark.parametrize("token", ["<think>", "<|endoftext|>", "one", "<|im_start|>"])
def test_token_of_the_model_is_refused(tmp_path: Path, token: str) -> None:
    with raises(RecipeError, "token-exists", token, where="model.add_tokens"):
        load_tokenizer(base_folder(tmp_path), adding("<new>", token, chat_markup="chatml"))


def test_adapters_keep_their_tokens_in_the_order_of_their_training(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    first = adapter(tmp_path / "1", base, added_tokens=["<sql>"])
    expected = load_tokenizer(base, adding("<sql>"))
    assert load_tokenizer(first).digest == expected.digest
    assert load_tokenizer(first).new_ids == ()
    second = adapter(tmp_path / "2", first, chat_markup="chatml", added_tokens=["<sql>", "<a>"])
    grown = load_tokenizer(first, adding("<a>", chat_markup="chatml"))
    size = len(load_tokenizer(base).hf_tokenizer)
    assert [grown.decode([size + i]) for i in range(4)] == ["<sql>", "<|im_start|>", "<|im_end|>", "<a>"]
    assert grown.new_ids == (size + 1, size + 2, size + 3)
    assert load_tokenizer(second).digest == grown.digest
    third = adapter(tmp_path / "3", second)
    assert load_tokenizer(third).digest == grown.digest
    assert third.added_tokens == ("<sql>", "<a>")
    with raises(RecipeError, "token-exists", "<sql>"):
        load_tokenizer(second, adding("<sql>"))


def test_full_model_keeps_its_tokens(tmp_path: Path) -> None:
    trained = load_tokenizer(base_folder(tmp_path / "base"), adding("<sql>"))
    folder = tmp_path / "tuned"
    trained.hf_tokenizer.save_pretrained(folder)
    write_json(folder / CARD, {"added_tokens": ["<sql>"]})
    tuned = load_tokenizer(ModelFolder("tuned", folder))
    assert tuned.digest == trained.digest
    assert tuned.encode_untrusted("Say <sql>") == trained.encode_untrusted("Say <sql>")
    # Without the card, it is a token that looks like markup, which a user's text cannot contain.
    assert trained.new_ids[0] not in TokenizerAdapter.load(folder).encode_untrusted("Say <sql>")
