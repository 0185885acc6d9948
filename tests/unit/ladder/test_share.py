"""What a rung takes over: only what it would make to the same bytes, and never a file that somebody goes on writing."""

from pathlib import Path

import pytest
from tests.unit.ladder.conftest import MakeLadder, binary, finish

from tunesmith import run_recipe
from tunesmith.core.files import check_folder, read_json, seal_folder, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.ladder.rungs import Ladder
from tunesmith.ladder.share import share, taken_over


def inodes(run: RunDir) -> dict[str, int]:
    folder = run.stage("prepare")
    return {path.relative_to(folder).as_posix(): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def prepared(ladder: Ladder) -> tuple[RunDir, RunDir]:
    """Prepare the first rung, share with the second, and return both."""
    first, second = (ladder.run(rung) for rung in ladder.rungs[:2])
    run_recipe(first.path, until="prepare")
    share(ladder, ladder.rungs[1])
    return first, second


def test_equal_inputs_share_one_set_of_files(make_ladder: MakeLadder) -> None:
    ladder = make_ladder("tuning.rank=2,8")
    first, second = prepared(ladder)
    ours, theirs = inodes(second), inodes(first)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"manifest.json"}
    assert check_folder(second.stage("prepare")) == check_folder(first.stage("prepare"))
    assert taken_over(second) == {"prepared data": "01-rank-2"}
    sealed = (second.stage("prepare") / "manifest.json").stat().st_mtime_ns
    run_recipe(second.path, until="prepare")
    assert (second.stage("prepare") / "manifest.json").stat().st_mtime_ns == sealed  # done before


@pytest.mark.parametrize("axis", ["data.train_rows=5,10", "seed=1,2", "data.max_tokens_per_example=64,128"])
def test_other_inputs_are_prepared_anew(make_ladder: MakeLadder, axis: str) -> None:
    _, second = prepared(make_ladder(axis))
    assert second.manifest("prepare") is None
    assert taken_over(second) == {}


def test_models_share_where_their_tokenizers_agree(
    make_ladder: MakeLadder, tmp_path: Path, tokenizer_folder: Path
) -> None:
    import shutil

    same, other = (shutil.copytree(tokenizer_folder, tmp_path / name) for name in ("same", "other"))
    (same / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + " ", encoding="utf-8")
    ladder = make_ladder(f"model.base={tokenizer_folder},{same},{other}")
    _, second = prepared(ladder)
    share(ladder, ladder.rungs[2])
    assert second.manifest("prepare") is not None
    assert ladder.run(ladder.rungs[2]).manifest("prepare") is None


def test_damaged_data_is_not_shared(make_ladder: MakeLadder) -> None:
    ladder = make_ladder("tuning.rank=2,8")
    first = ladder.run(ladder.rungs[0])
    run_recipe(first.path, until="prepare")
    with first.examples("train").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    share(ladder, ladder.rungs[1])
    assert ladder.run(ladder.rungs[1]).manifest("prepare") is None


def test_what_a_rung_has_is_kept(make_ladder: MakeLadder) -> None:
    ladder = make_ladder("tuning.rank=2,8")
    run_recipe(ladder.run(ladder.rungs[1]).path, until="prepare")
    before = inodes(ladder.run(ladder.rungs[1]))
    _, second = prepared(ladder)
    assert inodes(second) == before
    assert taken_over(second) == {}


def answered(ladder: Ladder, place: int) -> Path:
    """Let a rung look evaluated, its base's answers with it, and return them."""
    run = ladder.run(ladder.rungs[place])
    answers = run.subject("base") / "generations.jsonl"
    answers.parent.mkdir(parents=True)
    answers.write_text('{"id": "row-0"}\n', encoding="utf-8")
    write_json(run.subject("base") / "key.json", "the key")
    finish(ladder, ladder.rungs[place], binary(10), binary(40))
    return answers


def test_answers_of_the_base_are_copied_with_their_key(make_ladder: MakeLadder) -> None:
    ladder = make_ladder("data.train_rows=5,10")
    theirs = answered(ladder, 0)
    share(ladder, ladder.rungs[1])
    folder = ladder.run(ladder.rungs[1]).subject("base")
    assert (folder / "generations.jsonl").read_bytes() == theirs.read_bytes()
    assert read_json(folder / "key.json") == "the key"
    # It is appended to and cut in place, so it must not be the neighbour's own file.
    assert (folder / "generations.jsonl").stat().st_ino != theirs.stat().st_ino
    assert taken_over(ladder.run(ladder.rungs[1])) == {"answers of the base": "01-train_rows-5"}


def test_answers_are_not_taken_from_a_rung_that_is_not_done_or_was_altered(make_ladder: MakeLadder) -> None:
    ladder = make_ladder("tuning.rank=2,8,32")
    theirs = answered(ladder, 0)
    theirs.write_text('{"id": "row-1"}\n', encoding="utf-8")
    share(ladder, ladder.rungs[1])
    assert taken_over(ladder.run(ladder.rungs[1])) == {}
    seal_folder(ladder.run(ladder.rungs[0]).stage("evaluate"), stage="evaluate", inputs={})
    share(ladder, ladder.rungs[1])
    assert taken_over(ladder.run(ladder.rungs[1])) == {"answers of the base": "01-rank-2"}


def test_other_questions_are_asked_anew(make_ladder: MakeLadder) -> None:
    ladder = make_ladder("seed=1,2")
    answered(ladder, 0)
    share(ladder, ladder.rungs[1])
    assert not ladder.run(ladder.rungs[1]).subject("base").exists()
