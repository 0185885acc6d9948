"""Prompts have a digest of everything that compared models share, and their rows are selected by hash."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.prompts import COUNT, LIMIT, make_prompts

from tunesmith.core.files import digest_of
from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.records import Example, Turn
from tunesmith.core.rundir import RunDir
from tunesmith.inference.prompts import Prompts, build_prompts, read_selected_rows, select_examples
from tunesmith.inference.request import StopStrings
from tunesmith.inference.sampling import Sampling
from tunesmith.recipe.schema import Recipe


def test_the_digest_depends_on_rows_prompts_limits_and_decoding() -> None:
    prompts = make_prompts()
    assert prompts.digest == make_prompts().digest
    longer = ((*prompts.prompts[0], 5), *prompts.prompts[1:])
    others = [
        replace(prompts, max_new_tokens=LIMIT + 1), replace(prompts, stop_ids=(2,)), replace(prompts, beams=2),
        replace(prompts, prompts=prompts.prompts[::-1]), replace(prompts, examples=prompts.examples[::-1]),
        replace(prompts, prompts=longer), replace(prompts, decoder_prefix_ids=(0,)), make_prompts(COUNT - 1),
        replace(prompts, stop_strings=StopStrings(("\n",), str)), replace(prompts, samples=2),
        *(replace(prompts, sampling=(Sampling(**options),) * COUNT)
          for options in ({"temperature": 1, "seed": 1}, {"temperature": 1, "seed": 2}, {"repetition_penalty": 1.1})),
    ]  # fmt: skip
    assert len({prompts.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_greedy_prompts_keep_the_digest_of_earlier_versions() -> None:
    """Stored answers are found by it."""
    prompts = make_prompts()
    ids = [example.id for example in prompts.examples]
    assert prompts.digest == digest_of([ids, prompts.prompts, (), (), LIMIT, "beams 1"])


def built(samples: int = 1, count: int = 3, **evaluate: Any) -> Prompts:
    """Return the prompts of some rows, with settings of `evaluate`."""
    recipe = Recipe.model_validate({
        "name": "x", "model": {"base": "org/model"},
        "data": {"task": "completion", "prompt": "{q}", "response": "{a}", "source": {"file": "x.csv"}},
        "tuning": {"method": "full"}, "train": {"learning_rate": 1e-4},
        "evaluate": {"metrics": ["exact_match"], "primary": "exact_match", **evaluate},
    })  # fmt: skip
    task: Any = SimpleNamespace(encode_prompt=lambda turns: [1, 2], stop_ids=(2,), decoder_prefix_ids=())
    tokenizer: Any = SimpleNamespace(decode=str)
    return build_prompts(make_prompts(count).examples, recipe, task, tokenizer, samples=samples)


def test_prompts_take_the_decoding_options_of_the_recipe() -> None:
    greedy = built()
    assert (greedy.sampling, greedy.stop_strings, greedy.samples, greedy.answers) == ((), None, 1, 3)
    sampled = built(sampling={"temperature": 0.7, "top_p": 0.9, "seed": 4}, stop=["###"])
    assert sampled.stop_strings is not None
    assert sampled.stop_strings.texts == ("###",)
    options = Sampling(temperature=0.7, top_p=0.9, seed=4)
    assert sampled.sampling == tuple(options.of_answer(f"id-{row}", 1) for row in range(3))
    penalized = built(sampling={"repetition_penalty": 1.2})
    assert penalized.sampling == (Sampling(repetition_penalty=1.2),) * 3


def test_each_sample_of_a_row_has_its_own_seed_which_depends_on_no_other_row() -> None:
    settings = {"sampling": {"temperature": 1.0}}
    few, many = built(2, count=3, **settings), built(4, count=5, **settings)
    assert (few.answers, many.answers) == (6, 20)
    assert few.answer_lengths == [2] * 6
    assert few.sampling == (*many.sampling[:2], *many.sampling[4:6], *many.sampling[8:10])
    seeds = [options.seed for options in many.sampling]
    assert len(set(seeds)) == 20
    assert built(sampling={"temperature": 1.0, "seed": 1}).sampling[0] != few.sampling[0]


def test_prompt_and_answer_have_separate_positions_in_an_encoder_decoder_model() -> None:
    prompts = make_prompts(2, lengths=[10, 20])  # each with an answer of up to LIMIT tokens
    assert [prompts.fits(i, 20) for i in (0, 1)] == [True, False]
    encoder_decoder = replace(prompts, decoder_prefix_ids=(0,))
    assert [encoder_decoder.fits(i, 20) for i in (0, 1)] == [True, True]
    assert not encoder_decoder.fits(1, 19)
    assert replace(encoder_decoder, max_new_tokens=19).fits(0, 20)
    assert not replace(encoder_decoder, max_new_tokens=20).fits(0, 20)


def test_references_of_columns_are_part_of_the_digest() -> None:
    prompts = make_prompts(2)
    first, second = prompts.examples
    changed = [replace(prompts, examples=(replace(first, references=texts), second)) for texts in (("a",), ("a", "b"))]
    assert len({prompts.digest, *(one.digest for one in changed)}) == 3


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


def test_examples_of_used_rows_are_selected_alike_and_no_others_are_read(tmp_path: Path) -> None:
    run, read = RunDir(tmp_path), []
    made = write_examples(run, list(range(30)) * 2)

    def example(split: str, place: int) -> Example:
        read.append(place)
        return made[place]

    rows: Any = SimpleNamespace(ledger_entries=lambda split: made, example=example)
    chosen, places = read_selected_rows(run, "valid", 7, seed=3)
    assert select_examples(rows, "valid", 7, seed=3) == chosen
    assert read == places
