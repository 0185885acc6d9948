"""Source and target apart, with the tokenizer's own special tokens, and no text that becomes one of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tiny import make_tokenizer, save_seq2seq, seq2seq_tokenizer

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import ChatData, CompletionData, Seq2SeqData, TextData
from tunesmith.tasks import task_for
from tunesmith.tasks.base import RowProblem
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
def test_both_sides_are_what_the_tokenizer_makes_of_them(kind: str) -> None:
    tokenizer = load_tokenizer(kind)
    task = seq2seq(tokenizer)
    turns = task.parse(ROW)
    tokens = task.render(turns, "some id")
    assert tokens.example_id == "some id"
    assert list(tokens.prompt_ids) == task.encode_prompt(turns) == tokenizer.hf_tokenizer("Say 4 7 2").input_ids
    # What transformers calls the labels, after what its models put before them.
    assert list(tokens.input_ids) == [START[kind], *tokenizer.hf_tokenizer(text_target="four seven two").input_ids]
    assert tokens.trained == (False,) + (True,) * (len(tokens.input_ids) - 1)
    assert tokens.input_ids[-1] == tokenizer.eos_id == task.stop_ids[0]
    assert (
        tokens.input_ids[: len(task.decoder_prefix_ids)]
        == task.decoder_prefix_ids
        == ((0,) if kind == "t5" else (2, 0))
    )
    written = list(tokens.input_ids[len(task.decoder_prefix_ids) :])
    assert task.decode_answer(written) == task.reference(turns) == "four seven two"
    assert task.decode_answer([tokenizer.pad_id, *written[:-1], tokenizer.pad_id, written[-1]]) == "four seven two"


@pytest.mark.parametrize("kind", START)
@settings(max_examples=60, deadline=None)
@given(source=poisoned, target=poisoned)
def test_no_text_becomes_a_control_token(kind: str, source: str, target: str) -> None:
    tokenizer = load_tokenizer(kind)
    task = seq2seq(tokenizer, prompt="{digits}")
    turns = task.parse({"digits": source, "words": target})
    assert [i for i in task.encode_prompt(turns) if i in tokenizer.special_ids] == ([0, 2] if kind == "bart" else [1])
    if kind == "t5" and not tokenizer.decodes_to(tokenizer.encode_untrusted(target), target):
        assert "<" in target  # of which it has no piece, and so cannot be taught to write one
        with pytest.raises(RowProblem, match="do not decode"):
            task.render(turns)
        return
    tokens = task.render(turns)
    special = [i for i in tokens.input_ids if i in tokenizer.special_ids]
    assert special == ([2, 0, 2] if kind == "bart" else [0, 1])
    said = task.decode_answer(tokens.input_ids[len(task.decoder_prefix_ids) :])
    assert said.split() == target.split()


def test_a_tokenizer_that_knows_no_line_breaks_is_not_held_to_them() -> None:
    task = seq2seq(load_tokenizer("t5"))
    tokens = task.render(task.parse({"digits": "4", "words": "one\n two  three"}))
    assert task.decode_answer(tokens.input_ids[1:]) == "one two three"
    with pytest.raises(RowProblem, match="do not decode"):
        task.render(task.parse({"digits": "4", "words": "one {two}"}))
    exact = seq2seq(load_tokenizer("bart"))
    assert exact.decode_answer(exact.render(exact.parse({"digits": "4", "words": "one\n {two}  "})).input_ids[2:]) == (
        "one\n {two}  "
    )


@pytest.mark.parametrize("kind", START)
def test_both_limits_cut_and_the_source_keeps_its_end(kind: str) -> None:
    task = seq2seq(load_tokenizer(kind), max_target_tokens=4)
    turns = task.parse({"digits": "4 7 2 1 0 9 8 7 6 5", "words": "four seven two one"})
    tokens = task.render(turns)
    cut, reason = task.truncate(tokens, 8)
    assert reason == "source longer than 8 tokens and target longer than 4 tokens"
    assert len(cut.prompt_ids) == 8
    assert cut.prompt_ids[-1] == tokens.prompt_ids[-1]
    assert cut.prompt_ids[:-1] == tokens.prompt_ids[:7]
    assert cut.input_ids == tokens.input_ids[:5]
    assert len(cut.trained) == 5  # and so nothing teaches it to stop
    assert task.truncate(cut, 8) == (cut, None)
    assert len(task.encode_prompt(turns)) == len(tokens.prompt_ids)
    cutting = seq2seq(load_tokenizer(kind), max_tokens_per_example=8, too_long="truncate")
    assert cutting.encode_prompt(turns) == list(cut.prompt_ids)  # asked in use as it was in training
    assert cutting.render(turns).prompt_ids == tokens.prompt_ids  # so that the cut is seen, and counted
    whole = task.truncate(tokens, len(tokens.prompt_ids))
    assert whole[1] == "target longer than 4 tokens"
    assert whole[0].prompt_ids == tokens.prompt_ids


def test_a_tokenizer_without_an_end_is_given_one() -> None:
    tokenizer = TokenizerAdapter(make_tokenizer(), SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=0))
    task = seq2seq(tokenizer)
    tokens = task.render(task.parse(ROW))
    assert tokens.prompt_ids[-1] != tokenizer.eos_id
    assert (tokens.input_ids[0], tokens.input_ids[-1]) == (0, tokenizer.eos_id)


def test_the_start_is_the_configuration_s_or_the_code_of_the_language() -> None:
    from tokenizers import processors

    with pytest.raises(RecipeError, match="decoder_start_token_id"):
        seq2seq(load_tokenizer("bart", decoder_start_token_id=None))
    made = seq2seq_tokenizer("bart")
    template = processors.TemplateProcessing(single="$A </s> <unk>", special_tokens=[("</s>", 2), ("<unk>", 3)])
    made.backend_tokenizer.post_processor = template
    task = seq2seq(TokenizerAdapter(made, SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=None)))
    tokens = task.render(task.parse(ROW))
    assert (tokens.input_ids[0], tokens.input_ids[-1]) == (3, 2)
    made.tgt_lang = None
    with pytest.raises(RecipeError, match="language"):
        seq2seq(TokenizerAdapter(made, SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=None)))


def test_a_model_and_a_task_must_fit() -> None:
    others = [
        ChatData(source=SOURCE, task="chat", messages="m"), TextData(source=SOURCE, task="text", text="t"),
        CompletionData(source=SOURCE, task="completion", prompt="{a}", response="{b}"),
    ]  # fmt: skip
    for data in others:
        with pytest.raises(RecipeError, match=f"has an encoder, so it cannot do `task: {data.task}`") as caught:
            task_for(data, load_tokenizer("t5"))
        assert caught.value.where == "data.task"
    with pytest.raises(RecipeError, match="has no encoder, so it cannot do `task: seq2seq`"):
        seq2seq(TokenizerAdapter(make_tokenizer()))


def test_a_folder_tells_what_its_decoder_starts_from(tmp_path: Path) -> None:
    tokenizer = TokenizerAdapter.load(save_seq2seq(tmp_path / "m", "bart"))
    assert (tokenizer.has_encoder, tokenizer.decoder_start_id) == (True, 2)
    assert seq2seq(tokenizer).decoder_prefix_ids == (2, 0)


def test_asking_by_hand() -> None:
    task = seq2seq(load_tokenizer("t5"))
    assert [turn.text for turn in task.user_turn("4 7")] == ["Say 4 7"]
