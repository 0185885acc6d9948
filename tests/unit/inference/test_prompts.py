"""Prompts have a digest of everything that compared models share, and their rows are selected by hash."""

from dataclasses import replace
from pathlib import Path

from tests.support.prompts import COUNT, LIMIT, make_prompts

from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.records import Example, Turn
from tunesmith.core.rundir import RunDir
from tunesmith.inference.prompts import read_selected_rows


def test_the_digest_depends_on_rows_prompts_limits_and_decoding() -> None:
    prompts = make_prompts()
    assert prompts.digest == make_prompts().digest
    longer = ((*prompts.prompts[0], 5), *prompts.prompts[1:])
    others = [
        replace(prompts, max_new_tokens=LIMIT + 1), replace(prompts, stop_ids=(2,)), replace(prompts, beams=2),
        replace(prompts, prompts=prompts.prompts[::-1]), replace(prompts, examples=prompts.examples[::-1]),
        replace(prompts, prompts=longer), replace(prompts, decoder_prefix_ids=(0,)), make_prompts(COUNT - 1),
    ]  # fmt: skip
    assert len({prompts.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_prompt_and_answer_have_separate_positions_in_an_encoder_decoder_model() -> None:
    prompts = make_prompts(2, lengths=[10, 20])  # each with an answer of up to LIMIT tokens
    assert [prompts.fits(i, 20) for i in (0, 1)] == [True, False]
    encoder_decoder = replace(prompts, decoder_prefix_ids=(0,))
    assert [encoder_decoder.fits(i, 20) for i in (0, 1)] == [True, True]
    assert not encoder_decoder.fits(1, 19)
    assert replace(encoder_decoder, max_new_tokens=19).fits(0, 20)
    assert not replace(encoder_decoder, max_new_tokens=20).fits(0, 20)


def write_examples(run: RunDir, numbers: list[int]) -> list[Example]:
    made = [Example(f"row {n}", n, "g", (Turn("user", f"question {n}", False),)) for n in numbers]
    write_jsonl(run.examples("valid"), (example.to_json() for example in made))
    return made


def test_selected_rows_do_not_depend_on_order_and_equal_rows_count_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    made = write_examples(run, list(range(30)))
    chosen, places = read_selected_rows(run, "valid", 7, seed=3)
    assert chosen == [made[place] for place in places]
    assert places == sorted(set(places))
    assert len(places) == 7
    write_examples(run, [n for n in reversed(range(30)) for _ in range(2)])  # every row twice
    again, twice = read_selected_rows(run, "valid", 7, seed=3)
    assert {e.id for e in again} == {e.id for e in chosen}
    assert [e.row for e in again] == [29 - place // 2 for place in twice]
    assert {e.id for e in read_selected_rows(run, "valid", 7, seed=4)[0]} != {e.id for e in chosen}
    assert len(read_selected_rows(run, "valid", 99, seed=3)[0]) == 30
