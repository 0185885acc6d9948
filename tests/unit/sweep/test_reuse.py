"""A trial reuses only finished files that its own stages would write with the same bytes."""

from pathlib import Path

import pytest
from tests.support.earlier_versions import record, without
from tests.unit.sweep.conftest import MakeSweep, binary, finish

from tunesmith import run_recipe
from tunesmith.core.files import check_folder, read_json, seal_folder, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.sweep.axes import Sweep
from tunesmith.sweep.reuse import reuse, reused


def inodes(run: RunDir) -> dict[str, int]:
    """Return {file: inode} of the prepared data."""
    folder = run.stage("prepare")
    return {path.relative_to(folder).as_posix(): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def prepare_first(sweep: Sweep) -> tuple[RunDir, RunDir]:
    """Prepare the first trial, let the second reuse its data, and return both."""
    first, second = (sweep.run(trial) for trial in sweep.trials[:2])
    run_recipe(first.path, until="prepare")
    reuse(sweep, sweep.trials[1])
    return first, second


def test_equal_inputs_share_files(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("tuning.rank=2,8")
    first, second = prepare_first(sweep)
    files, shared = inodes(second), inodes(first)
    assert files.keys() == shared.keys()
    assert {name for name in files if files[name] != shared[name]} == {"manifest.json"}
    assert check_folder(second.stage("prepare")) == check_folder(first.stage("prepare"))
    assert reused(second) == {"prepared data": "01-rank-2"}
    sealed = (second.stage("prepare") / "manifest.json").stat().st_mtime_ns
    run_recipe(second.path, until="prepare")
    assert (second.stage("prepare") / "manifest.json").stat().st_mtime_ns == sealed  # already done


def test_data_prepared_by_an_earlier_version_is_reused(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("tuning.rank=2,8")
    first, second = (sweep.run(trial) for trial in sweep.trials)
    record(run_recipe(first.path, until="prepare"), without("data.source.quote"))
    reuse(sweep, sweep.trials[1])
    assert reused(second) == {"prepared data": "01-rank-2"}


@pytest.mark.parametrize("axis", ["data.train_rows=5,10", "seed=1,2", "data.max_tokens_per_example=64,128"])
def test_other_inputs_are_prepared_again(make_sweep: MakeSweep, axis: str) -> None:
    _, second = prepare_first(make_sweep(axis))
    assert second.manifest("prepare") is None
    assert reused(second) == {}


def test_models_with_equal_tokenizers_share_data(make_sweep: MakeSweep, tmp_path: Path, tokenizer_folder: Path) -> None:
    import shutil

    same, other = (shutil.copytree(tokenizer_folder, tmp_path / name) for name in ("same", "other"))
    (same / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + " ", encoding="utf-8")
    sweep = make_sweep(f"model.base={tokenizer_folder},{same},{other}")
    _, second = prepare_first(sweep)
    reuse(sweep, sweep.trials[2])
    assert second.manifest("prepare") is not None
    assert sweep.run(sweep.trials[2]).manifest("prepare") is None


def test_damaged_data_is_not_shared(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("tuning.rank=2,8")
    first = sweep.run(sweep.trials[0])
    run_recipe(first.path, until="prepare")
    with first.examples("train").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    reuse(sweep, sweep.trials[1])
    assert sweep.run(sweep.trials[1]).manifest("prepare") is None


def test_prepared_data_of_a_trial_is_not_replaced(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("tuning.rank=2,8")
    run_recipe(sweep.run(sweep.trials[1]).path, until="prepare")
    before = inodes(sweep.run(sweep.trials[1]))
    _, second = prepare_first(sweep)
    assert inodes(second) == before
    assert reused(second) == {}


def write_base_answers(sweep: Sweep, index: int) -> Path:
    """Finish a trial with answers of its base, and return the file of the answers."""
    run = sweep.run(sweep.trials[index])
    answers = run.evaluation("base") / "generations.jsonl"
    answers.parent.mkdir(parents=True)
    answers.write_text('{"id": "row-0"}\n', encoding="utf-8")
    write_json(run.evaluation("base") / "key.json", "the key")
    finish(sweep, sweep.trials[index], binary(10), binary(40))
    return answers


def test_base_answers_are_copied_with_their_key(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("data.train_rows=5,10")
    source = write_base_answers(sweep, 0)
    reuse(sweep, sweep.trials[1])
    folder = sweep.run(sweep.trials[1]).evaluation("base")
    assert (folder / "generations.jsonl").read_bytes() == source.read_bytes()
    assert read_json(folder / "key.json") == "the key"
    # Generation changes the file in place, so it must not be shared with the other trial.
    assert (folder / "generations.jsonl").stat().st_ino != source.stat().st_ino
    assert reused(sweep.run(sweep.trials[1])) == {"answers of the base": "01-train_rows-5"}


def test_altered_base_answers_are_not_reused(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("tuning.rank=2,8,32")
    source = write_base_answers(sweep, 0)
    source.write_text('{"id": "row-1"}\n', encoding="utf-8")
    reuse(sweep, sweep.trials[1])
    assert reused(sweep.run(sweep.trials[1])) == {}
    seal_folder(sweep.run(sweep.trials[0]).stage("evaluate"), stage="evaluate", inputs={})
    reuse(sweep, sweep.trials[1])
    assert reused(sweep.run(sweep.trials[1])) == {"answers of the base": "01-rank-2"}


def test_base_answers_to_other_prompts_are_not_reused(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("seed=1,2")
    write_base_answers(sweep, 0)
    reuse(sweep, sweep.trials[1])
    assert not sweep.run(sweep.trials[1]).evaluation("base").exists()
