"""The seq2seq task: source and target with the tokenizer's special tokens, and no control tokens from text."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.errors import raises, row_problem
from tests.support.tiny import make_tokenizer, save_seq2seq, seq2seq_tokenizer

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import ChatData, CompletionData, Seq2SeqData, TextData
from tunesmith.tasks import task_for
from tunesmith.tasks.seq2seq import Seq2SeqTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

SOURCE = FileSource(file="rows.jsonl")
ROW = {"digits": "4 7 2", "words": "four seven two"}
START = {"t5": 0, "bart": 2}
control = st.sampled_from(["</s>", "<s>", "<pad>", "<unk>", "<extra_id_0>", " ", "\n", "one", "4"])
poisoned = st.lists(st.one_of(st.text("ab4 .", max_size=4), control), max_size=6).map("".join).filter(str.strip)


def load_tokenizer(kind: str, **changes: Any) -> TokenizerAdapter:
    config = {"is_encoder_decoder": True, "decoder_start_token_id": START[kind], **changes}
    return TokenizerAdapter(seq2seq_tokenizer(kind), SimpleNamespace(**config))


def seq2seq(tokenizer: TokenizerAdapter, **changes: Any) -> Seq2SeqTask:
    data = {"source": SOURCE, "task": "seq2seq", "prompt": "Say {digits}", "response": "{words}", **changes}
    task = task_for(Seq2SeqData.model_validate(data), tokenizer)
    assert isinstance(task, Seq2SeqTask)
    return task


@pytest.mark.parametrize("kind", START)
def test_source_and_target_equal_the_tokenizers_ids(kind: str) -> None:
    tokenizer = load_tokenizer(kind)
    task = seq2seq(tokenizer)
    turns = task.parse(ROW)
    tokens = task.render(turns, "some id")
    assert tokens.example_id == "some id"
    assert list(tokens.prompt_ids) == task.encode_prompt(turns) == tokenizer.hf_tokenizer("Say 4 7 2").input_ids
    # The labels of transformers, after the decoder's start token.
    assert list(tokens.input_ids) == [START[kind], *tokenizer.hf_tokenizer(text_target="four seven two").input_ids]
    assert tokens.trained == (False,) + (True,) * (len(tokens.input_ids) - 1)
    assert tokens.input_ids[-1] == tokenizer.eos_id == task.stop_ids[0]
    assert (
        tokens.input_ids[: len(task.decoder_prefix_ids)]
        == task.decoder_prefix_ids
        == ((0,) if kind == "t5" else (2, 0))
    )
    answer = list(tokens.input_ids[len(task.decoder_prefix_ids) :])
    assert task.decode_answer(answer) == task.reference(turns) == "four seven two"
    assert task.decode_answer([tokenizer.pad_id, *answer[:-1], tokenizer.pad_id, answer[-1]]) == "four seven two"
    endless = seq2seq(tokenizer, train_on_end=False).render(turns, "some id")
    assert (endless.input_ids, endless.trained) == (tokens.input_ids[:-1], tokens.trained[:-1])
    assert endless.prompt_ids == tokens.prompt_ids


@pytest.mark.parametrize("kind", START)
@settings(max_examples=60, deadline=None)
@given(source=poisoned, target=poisoned)
def test_text_is_never_encoded_to_control_tokens(kind: str, source: str, target: str) -> None:
    tokenizer = load_tokenizer(kind)
    task = seq2seq(tokenizer, prompt="{digits}")
    turns = task.parse({"digits": source, "words": target})
    assert [i for i in task.encode_prompt(turns) if i in tokenizer.special_ids] == ([0, 2] if kind == "bart" else [1])
    if kind == "t5" and not tokenizer.decodes_to(tokenizer.encode_untrusted(target), target):
        assert "<" in target, "the vocabulary has no piece for it"
        with row_problem("decode-mismatch"):
            task.render(turns)
        return
    tokens = task.render(turns)
    special = [i for i in tokens.input_ids if i in tokenizer.special_ids]
    assert special == ([2, 0, 2] if kind == "bart" else [0, 1])
    decoded = task.decode_answer(tokens.input_ids[len(task.decoder_prefix_ids) :])
    assert decoded.split() == target.split()


def test_line_breaks_are_not_compared_if_the_tokenizer_drops_them() -> None:
    task = seq2seq(load_tokenizer("t5"))
    tokens = task.render(task.parse({"digits": "4", "words": "one\n two  three"}))
    assert task.decode_answer(tokens.input_ids[1:]) == "one two three"
    with row_problem("decode-mismatch"):
        task.render(task.parse({"digits": "4", "words": "one {two}"}))
    exact = seq2seq(load_tokenizer("bart"))
    assert exact.decode_answer(exact.render(exact.parse({"digits": "4", "words": "one\n {two}  "})).input_ids[2:]) == (
        "one\n {two}  "
    )


@pytest.mark.parametrize("kind", START)
def test_truncation_of_source_and_target_keeps_the_end_of_the_source(kind: str) -> None:
    task = seq2seq(load_tokenizer(kind), max_target_tokens=4)
    turns = task.parse({"digits": "4 7 2 1 0 9 8 7 6 5", "words": "four seven two one"})
    tokens = task.render(turns)
    cut, reason = task.truncate(tokens, 8)
    assert reason == "source longer than 8 tokens and target longer than 4 tokens"
    assert len(cut.prompt_ids) == 8
    assert cut.prompt_ids[-1] == tokens.prompt_ids[-1]
    assert cut.prompt_ids[:-1] == tokens.prompt_ids[:7]
    assert cut.input_ids == tokens.input_ids[:5]
    assert len(cut.trained) == 5  # without the end token
    assert task.truncate(cut, 8) == (cut, None)
    assert len(task.encode_prompt(turns)) == len(tokens.prompt_ids)
    truncating = seq2seq(load_tokenizer(kind), max_tokens_per_example=8, too_long="truncate")
    assert truncating.encode_prompt(turns) == list(cut.prompt_ids)  # the same as in training
    assert (
        truncating.render(turns).prompt_ids == tokens.prompt_ids
    )  # so that the caller sees the truncation, and counts it
    whole = task.truncate(tokens, len(tokens.prompt_ids))
    assert whole[1] == "target longer than 4 tokens"
    assert whole[0].prompt_ids == tokens.prompt_ids


def test_end_token_is_added_if_the_tokenizer_adds_none() -> None:
    tokenizer = TokenizerAdapter(make_tokenizer(), SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=0))
    task = seq2seq(tokenizer)
    tokens = task.render(task.parse(ROW))
    assert tokens.prompt_ids[-1] != tokenizer.eos_id
    assert (tokens.input_ids[0], tokens.input_ids[-1]) == (0, tokenizer.eos_id)


def test_decoder_start_is_from_the_configuration_or_a_language_code() -> None:
    from tokenizers import processors

    with raises(RecipeError, "no-decoder-start", "decoder_start_token_id", where="model.base"):
        seq2seq(load_tokenizer("bart", decoder_start_token_id=None))
    hf_tokenizer = seq2seq_tokenizer("bart")
    template = processors.TemplateProcessing(single="$A </s> <unk>", special_tokens=[("</s>", 2), ("<unk>", 3)])
    hf_tokenizer.backend_tokenizer.post_processor = template
    task = seq2seq(
        TokenizerAdapter(hf_tokenizer, SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=None))
    )
    tokens = task.render(task.parse(ROW))
    assert (tokens.input_ids[0], tokens.input_ids[-1]) == (3, 2)
    hf_tokenizer.tgt_lang = None
    with raises(RecipeError, "no-target-language", "tgt_lang", where="model.base"):
        seq2seq(TokenizerAdapter(hf_tokenizer, SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=None)))


def test_task_and_model_must_agree_on_the_encoder() -> None:
    others = [
        ChatData(source=SOURCE, task="chat", messages="m"), TextData(source=SOURCE, task="text", text="t"),
        CompletionData(source=SOURCE, task="completion", prompt="{a}", response="{b}"),
    ]  # fmt: skip
    for data in others:
        with raises(RecipeError, "task-unsupported", f"`task: {data.task}`", where="data.task"):
            task_for(data, load_tokenizer("t5"))
    with raises(RecipeError, "task-unsupported", "`task: seq2seq`", where="data.task"):
        seq2seq(TokenizerAdapter(make_tokenizer()))


def test_decoder_start_of_a_model_folder(tmp_path: Path) -> None:
    tokenizer = TokenizerAdapter.load(save_seq2seq(tmp_path / "m", "bart"))
    assert (tokenizer.has_encoder, tokenizer.decoder_start_id) == (True, 2)
    assert seq2seq(tokenizer).decoder_prefix_ids == (2, 0)


def test_user_turn_fills_the_prompt() -> None:
    task = seq2seq(load_tokenizer("t5"))
    assert [turn.text for turn in task.user_turn("4 7")] == ["Say 4 7"]
