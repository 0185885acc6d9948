"""Models are compared on questions that are the same in everything: rows, prompts, decoding, limits."""

from dataclasses import replace
from pathlib import Path

from tests.unit.inference.asked import COUNT, LIMIT, questions

from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.records import Example, Turn
from tunesmith.core.rundir import RunDir
from tunesmith.inference.prompts import read_selected_rows


def test_questions_that_differ_in_anything_have_another_digest() -> None:
    one = questions()
    assert one.digest == questions().digest
    others = [
        replace(one, max_new_tokens=LIMIT + 1), replace(one, stop_ids=(2,)), replace(one, prompts=one.prompts[::-1]),
        replace(one, examples=one.examples[::-1]), questions(COUNT - 1),
        replace(one, prompts=((*one.prompts[0], 5), *one.prompts[1:])), replace(one, decoder_start_ids=(0,)),
        replace(one, beams=2),
    ]  # fmt: skip
    assert len({one.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_an_encoder_needs_room_for_the_prompt_alone() -> None:
    one = questions(2, lengths=[10, 20])  # LIMIT more are written
    assert [one.fits(i, 20) for i in (0, 1)] == [True, False]
    beside = replace(one, decoder_start_ids=(0,))
    assert [beside.fits(i, 20) for i in (0, 1)] == [True, True]
    assert not beside.fits(1, 19)
    assert replace(beside, max_new_tokens=19).fits(0, 20)
    assert not replace(beside, max_new_tokens=20).fits(0, 20)


def some(run: RunDir, numbers: list[int]) -> list[Example]:
    made = [Example(f"row {n}", n, "g", (Turn("user", f"question {n}", False),)) for n in numbers]
    write_jsonl(run.examples("valid"), (one.to_json() for one in made))
    return made


def test_the_rows_of_a_split_are_the_same_whatever_their_order_and_equal_ones_count_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    made = some(run, list(range(30)))
    chosen, places = read_selected_rows(run, "valid", 7, seed=3)
    assert chosen == [made[place] for place in places]
    assert places == sorted(set(places))
    assert len(places) == 7
    some(run, [n for n in reversed(range(30)) for _ in range(2)])  # every row twice
    again, twice = read_selected_rows(run, "valid", 7, seed=3)
    assert {e.id for e in again} == {e.id for e in chosen}
    assert [e.row for e in again] == [29 - place // 2 for place in twice]
    assert {e.id for e in read_selected_rows(run, "valid", 7, seed=4)[0]} != {e.id for e in chosen}
    assert len(read_selected_rows(run, "valid", 99, seed=3)[0]) == 30
