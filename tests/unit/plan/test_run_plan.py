"""What `plan` says is what will be done."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copytree

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe as write_recipe
from tests.support.tiny import save_seq2seq, tree

from tunesmith.core.errors import DataError, DoesNotFit, RecipeError
from tunesmith.core.jsonl import read_jsonl
from tunesmith.estimate.hardware import Hardware
from tunesmith.estimate.throughput import Speed
from tunesmith.pipeline.runner import run_recipe
from tunesmith.plan import run_plan, scaling
from tunesmith.plan.run_plan import RunPlan, plan_run

MIX = [
    "data.source=[{file: rows.jsonl, weight: 1.5}, {file: more.jsonl, name: more}]",
    "data.filters=[{column: tree, max: 15}]", "data.train_rows=0.7", "data.duplicates=drop",
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path) -> Path:
    path = write_recipe(tmp_path, tiny)
    (tmp_path / "more.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("Say", "Tell"))
    return path


def test_the_plan_counts_what_prepare_writes(recipe: Path) -> None:
    plan = plan_run(recipe, MIX)
    manifest = run_recipe(recipe, MIX, out=recipe.parent / "run", until="prepare").manifest("prepare")
    assert manifest is not None
    for key in ("sources", "filtered", "dropped", "cut", "unused", "blocks", "copies", "tokens", "lengths"):
        assert getattr(plan, key) == manifest[key]
    assert plan.counts == {split: manifest["counts"][split] for split in ("train", "valid", "test")}
    assert plan.steps.train_rows == plan.counts["train"]


def test_the_plan_shows_sources_filters_lengths_and_copies(recipe: Path) -> None:
    lines = {line.split()[0]: line for line in str(plan_run(recipe, MIX)).splitlines()}
    assert "filtered 24 x `tree` is above 15" in lines["rows"]
    assert lines["source"].startswith("source   more: train ")
    assert "\u2588" in lines["lengths"]
    assert "test rows in train 0 + 0 nearly" in lines["copies"]
    assert "source" not in str(plan_run(recipe))


def test_the_plan_says_which_rows_are_cut_and_which_are_not_used(recipe: Path) -> None:
    least = plan_run(recipe).longest - 1
    plan = plan_run(recipe, [f"data.max_tokens_per_example={least}", "data.too_long=truncate", "data.train_rows=5"])
    assert list(plan.cut) == [f"longer than {least} tokens"]
    assert f"cut {plan.cut[f'longer than {least} tokens']} x longer than {least} tokens" in str(plan)
    assert f"unused {plan.unused['beyond train_rows']} x beyond train_rows" in str(plan)


def test_a_plan_stops_where_the_run_would(recipe: Path) -> None:
    with pytest.raises(DataError, match="filters leave none of the 60 rows"):
        plan_run(recipe, ["data.filters=[{column: answer, equals: nothing}]"])


def test_the_plan_says_what_is_in_blocks_and_what_is_left_out(recipe: Path) -> None:
    text = ("data={source: {file: rows.jsonl}, task: text, text: '{question} {answer}', max_tokens_per_example: 12, "
            "too_long: split, leakage: drop, near_duplicate_threshold: 0.5}")  # fmt: skip
    plan = plan_run(recipe, [text])
    lines = {line.split()[0]: line for line in str(plan).splitlines()}
    assert plan.blocks["documents"] == 60
    assert f"; 60 documents in {plan.blocks['blocks']} blocks" in lines["rows"]
    assert plan.longest == 12
    (recipe.parent / "rows.jsonl").write_text(
        "".join(f'{{"question": "Say one {i}.", "answer": "one", "fold": "{"train" if i % 9 else "test"}"}}\n'
                for i in (*range(18), *range(1, 4))) + '{"question": "Say one 5.", "answer": "one", "fold": "test"}\n'
    )  # fmt: skip
    # Documents this short leave nothing to answer after the prompt, so only their likelihood can be judged.
    judged = ["evaluate.metrics=[perplexity]", "evaluate.primary=perplexity"]
    plan = plan_run(recipe, [text.replace("near_duplicate_threshold: 0.5", "split: {column: fold}"), *judged])
    rows, copies = (next(line for line in str(plan).splitlines() if line.startswith(name)) for name in ("rows", "copi"))
    assert f"unused {plan.unused['says what a test row says']} x says what a test row says" in rows
    assert copies.endswith("test rows in train 0 + 0 nearly, left out of train 1 + 0 nearly")


def test_the_plan_says_what_validation_asks_and_what_chooses(recipe: Path) -> None:
    asking = ["train.valid_metrics=[rougeL]", "train.select_best_by=rougeL", "train.valid_rows=3"]
    assert "validation every 1, answering 3 rows, checkpoint every 1, the best by rougeL" in str(
        plan_run(recipe, asking)
    )
    assert plan_run(recipe, [*asking[:2], "train.valid_rows=999"]).answered == plan_run(recipe).counts["valid"] > 3
    assert "validation every 1, checkpoint every 1, the best by loss" in str(plan_run(recipe))


def test_a_plan_refuses_a_precision_that_the_model_overflows_in(tmp_path: Path) -> None:
    data = {"source": {"file": "rows.jsonl"}, "task": "seq2seq", "prompt": "{question}", "response": "{answer}"}
    path = write_recipe(tmp_path, save_seq2seq(tmp_path / "t5"), data=data)
    assert plan_run(path).counts["train"] > 0
    with pytest.raises(RecipeError, match="t5 overflows in fp16"):
        plan_run(path, ["model.precision=fp16"])


@pytest.mark.parametrize("every", [1, 2, 4, 9])
def test_the_plan_counts_the_validations_that_training_does(recipe: Path, every: int) -> None:
    changes = [f"train.valid_every_steps={every}", "train.max_steps=4"]
    plan = plan_run(recipe, changes)
    run = run_recipe(recipe, changes, out=recipe.parent / "run", until="train")
    assert plan.steps.validations == sum(line["kind"] == "valid" for line in read_jsonl(run.metrics))
    n = plan.work.valid_tokens
    assert plan.work.valid_rows == (run.manifest("train") or {})["valid_loss_rows"] < plan.counts["valid"]
    assert f"{n * plan.steps.validations:,} to validate on ({plan.steps.validations} x {n:,})" in str(plan)


def test_the_plan_counts_validation_and_answers_in_tokens_and_time(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_plan, "load_speed", lambda *_: None)
    unknown = plan_run(recipe)
    assert (unknown.seconds, unknown.work.validating_seconds, unknown.work.answering_seconds) == (None, None, None)
    monkeypatch.setattr(scaling, "estimate_rank_utilization", lambda *_: 1.0)
    monkeypatch.setattr(run_plan, "load_speed", lambda *_: Speed(100.0))
    trained = plan_run(recipe)
    read = trained.steps.validations * trained.work.valid_tokens
    assert trained.work.validating_seconds == pytest.approx(read / 100), "no faster than training, as far as is known"
    assert trained.work.answering_seconds is None
    monkeypatch.setattr(run_plan, "load_speed", lambda *_: Speed(100.0, reading=300.0, writing=20.0))
    plan = plan_run(recipe)
    assert plan.work.validating_seconds == pytest.approx(read / 300)
    assert plan.work.written_tokens[1] == 2 * 8 * 8, "both models, 8 rows, 8 tokens at most"
    assert plan.work.answering_seconds is not None
    assert plan.work.answering_seconds[0] < plan.work.answering_seconds[1] == pytest.approx(2 * 8 * 8 / 20)
    asking = plan_run(recipe, ["train.valid_metrics=[rougeL]", "train.valid_rows=3", "evaluate.rows=5"])
    assert asking.work.written_tokens[1] == (2 * 5 + 3 * asking.steps.validations) * 8
    json.dumps(plan.to_json(), allow_nan=False)


def test_without_valid_rows_the_plan_does_not_mention_validation(recipe: Path) -> None:
    rows = [json.loads(line) for line in (recipe.parent / "rows.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "fold": "test" if i % 5 == 0 else "train"}) + "\n" for i, row in enumerate(rows)]
    (recipe.parent / "rows.jsonl").write_text("".join(lines))
    plan = plan_run(recipe, ["data.split={column: fold}"])
    assert plan.counts["valid"] == plan.work.valid_rows == 0
    assert "validat" not in str(plan)
    assert "best by" not in str(plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [["train.packing=always"], ["tuning.dropout=0.1"], ["tuning={method: full}", "train.micro_batch=2"],
     ["train.activation_checkpointing=true", "train.packing=never"]],
    ids=["packed", "dropout", "full", "checkpointed"],
)  # fmt: skip
def test_the_plan_expects_the_memory_that_training_expects(recipe: Path, changes: list[str]) -> None:
    plan = plan_run(recipe, [*changes, "train.max_steps=2"])
    run = run_recipe(recipe, [*changes, "train.max_steps=2"], out=recipe.parent / "run", until="train")
    manifest = run.manifest("train")
    assert manifest is not None
    assert manifest["expected_memory"] == asdict(plan.memory)
    assert manifest["expected_memory_gib"] == pytest.approx(plan.memory.total, abs=1e-3)
    assert manifest["peak_memory_gib"] > 0.1


def test_a_plan_that_does_not_fit_is_shown_and_then_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_run(recipe).require_fit()
    monkeypatch.setattr(run_plan, "detect_hardware", lambda: Hardware("cpu", False, 0.2))
    plan = plan_run(recipe)
    assert "of 0.2 available" in str(plan)
    with pytest.raises(DoesNotFit, match=r"training needs about 0\.\d GiB and 0\.2 are available"):
        plan.require_fit()


def test_a_plan_refuses_a_model_without_weights_and_rows_beyond_its_positions(tmp_path: Path, tiny: Path) -> None:
    path = write_recipe(tmp_path, copytree(tiny, tmp_path / "model"))
    positions = json.loads((tiny / "config.json").read_text())["max_position_embeddings"]
    long = {"question": "one " * positions, "answer": "two"}
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    with raises(RecipeError, "too-many-tokens", positions, where="data.max_tokens_per_example"):
        plan_run(path, ["data.max_tokens_per_example=100000"])
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="holds no weights"):
        plan_run(path)


SLURM = ["launch.on=slurm", "launch.nodes=2"]


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of Slurm may be installed here, with no cluster behind them."""
    monkeypatch.setattr("tunesmith.slurm.client.is_available", lambda: False)


@pytest.mark.usefixtures("no_slurm")
def test_the_plan_shows_the_scripts_of_all_stages_and_writes_none(recipe: Path) -> None:
    out = recipe.parent / "run"
    plan = plan_run(recipe, [*SLURM, "promote={model: x}"], out=out)
    assert list(plan.scripts) == ["prepare", "train", "evaluate", "promote"]
    assert all(text in str(plan) for text in plan.scripts.values())
    assert not out.exists()
    assert plan_run(recipe).scripts == {}
    assert plan_run(recipe, SLURM).run == plan_run(recipe).run, "where it runs does not make it another run"


def test_the_plan_asks_slurm_where_there_is_one(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("tunesmith.slurm.client.is_available", lambda: True)
    monkeypatch.setattr(
        "tunesmith.slurm.client.estimate_start", lambda text: asked.append(text) or "would begin it at noon"
    )
    plan = plan_run(recipe, SLURM)
    assert asked == list(plan.scripts.values())
    assert str(plan).endswith("Slurm, asked about the first: would begin it at noon")


@pytest.mark.usefixtures("no_slurm")
def test_turns_that_are_too_short_for_a_checkpoint_are_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_run(recipe)
    interval = plan.training_tokens / plan.steps.total_steps * plan.steps.save_every_steps
    limit = [*SLURM, "launch.time_limit_minutes=15"]  # of which 5 are for saving
    for minutes, refused in ((9, False), (11, True)):
        speed = Speed(interval / (60 * minutes) / 2)  # of each of two processes
        monkeypatch.setattr(run_plan, "load_speed", lambda *_, speed=speed: speed)
        assert plan_run(recipe, SLURM).slurm is None, "without a limit there is nothing to refuse"
        elsewhere = plan_run(recipe, [*limit, "launch.gpus_per_node=1"])
        assert elsewhere.tokens_per_second is None, "of GPUs this machine knows nothing"
        if refused:
            with pytest.raises(RecipeError, match="trains for 10 minutes at most, and a checkpoint needs 11"):
                plan_run(recipe, limit)
        else:
            plan_run(recipe, limit)


@pytest.mark.usefixtures("no_slurm")
def test_machines_that_are_elsewhere_are_what_the_recipe_says(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "detect_hardware", lambda: Hardware("cpu", has_bf16=False, memory_gib=0.001))
    with pytest.raises(DoesNotFit):
        plan_run(recipe).require_fit()
    gpus = [*SLURM, "launch.gpus_per_node=4"]
    unknown = plan_run(recipe, gpus)
    unknown.require_fit()
    assert unknown.memory_available is None
    assert "on slurm, 4 processes on each of 2 machines" in str(unknown)
    assert "GiB for each process" in str(unknown)
    json.dumps(unknown.to_json(), allow_nan=False)
    known = plan_run(recipe, [*gpus, "launch.gpu_memory_gib=80"])
    assert known.memory_available == 80
    assert "of 80.0 available" in str(known)
    shared = plan_run(recipe, [*SLURM, "launch.processes_per_node=2", "launch.memory_gib_per_node=64"])
    assert shared.memory_available == 32


@pytest.mark.usefixtures("no_slurm")
def test_many_processes_take_less_time_at_best(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "load_speed", lambda *_: Speed(100.0, cores=4))
    monkeypatch.setattr(scaling, "estimate_rank_utilization", lambda *_: 0.8)
    monkeypatch.setattr(scaling, "available_cores", lambda: 4)
    alone, two = plan_run(recipe), plan_run(recipe, SLURM)
    assert alone.seconds == pytest.approx(2 * [alone.training_tokens / 80])
    assert two.seconds == pytest.approx([seconds / 2 for seconds in alone.seconds or ()])
    assert "at best, with 2 processes, each at 100 tokens/s" in str(two)
    narrow = plan_run(recipe, [*SLURM, "launch.cpus_per_process=1"])
    assert narrow.tokens_per_second == pytest.approx(25), "with a quarter of the cores that were measured"
    linked = plan_run(recipe, [*SLURM, "launch.inter_node_gb_per_second=1e-3"])
    assert linked.seconds is not None
    assert linked.communication is not None
    assert linked.seconds[0] == pytest.approx(two.seconds[0] + linked.steps.total_steps * linked.communication.exposed)
    assert "hours of a process; each at 100 tokens/s" in str(linked)
    assert linked.to_json()["seconds_at_worst"] == linked.seconds[1]


@pytest.mark.usefixtures("no_slurm")
def test_every_process_moves_all_weights_that_it_has(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "load_speed", lambda *_: Speed(100.0, cores=1, update_seconds=0.5))
    monkeypatch.setattr(scaling, "estimate_rank_utilization", lambda *_: 1.0)
    full = "tuning={method: full}"
    alone, two, parts = (plan_run(recipe, [full, *asked]) for asked in ((), SLURM, [*SLURM, "launch.sharding=full"]))
    step = alone.training_tokens / alone.steps.total_steps
    assert alone.tokens_per_second == pytest.approx(step / (step / 100 + 0.5))
    assert two.together == pytest.approx(2 * [step / (step / 200 + 0.5)])
    assert parts.together is not None
    assert two.together[0] < parts.together[0] < step / (step / 200 + 0.25), "embeddings are not divided"


@pytest.mark.usefixtures("no_slurm")
def test_other_numbers_of_machines_are_looked_at(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "load_speed", lambda *_: None)
    assert plan_run(recipe, SLURM).scaling == [], "whose speed nobody knows"
    monkeypatch.setattr(run_plan, "load_speed", lambda *_: Speed(100.0))
    monkeypatch.setattr(scaling, "estimate_rank_utilization", lambda *_: 1.0)
    assert plan_run(recipe).scaling == []
    asked = [*SLURM, "launch.nodes=3", "launch.inter_node_gb_per_second=1e-3"]
    sizes = plan_run(recipe, asked).scaling
    assert [one["machines"] for one in sizes] == [1, 2, 3, 4, 8]
    speeds = [one["tokens_per_second"] for one in sizes]
    assert speeds[0] == pytest.approx((100, 100))
    assert all(low <= high < 100 * one["machines"] for (low, high), one in zip(speeds[1:], sizes[1:], strict=True))
    assert "scaling  tokens/s by machines: 1: 100; 2: " in str(plan_run(recipe, asked))
    little = plan_run(recipe, [*asked, "launch.processes_per_node=4", "launch.memory_gib_per_node=1"])
    assert ": 1: does not fit; 2: does not fit; 3: does" in str(little)
    monkeypatch.setattr(scaling, "available_cores", lambda: 2)
    processes = plan_run(recipe, ["launch={on: torchrun, processes: 2}"])
    assert "tokens/s by processes, at best: 1: 100; 2: 200" in str(processes)


def test_processes_on_one_processor_share_its_memory(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "detect_hardware", lambda: Hardware("cpu", has_bf16=False, memory_gib=12.0))
    plan = plan_run(recipe, ["launch={on: torchrun, processes: 4}"])
    assert plan.memory_available == 3
    assert "on torchrun, 4 processes" in str(plan)


@pytest.mark.usefixtures("no_slurm")
def test_what_has_no_room_as_a_whole_is_planned_in_parts(recipe: Path) -> None:
    full = [*SLURM, "tuning={method: full}", "launch.gpus_per_node=4", "launch.gpu_memory_gib=80"]
    whole = plan_run(recipe, full)
    assert whole.sharding == "none"
    for name, told in (("full", "each with its part of every layer"), ("node", "that every machine keeps once")):
        parts = plan_run(recipe, [*full, f"launch.sharding={name}"])
        assert parts.sharding == name
        assert told in str(parts)
        assert parts.memory.optimizer < whole.memory.optimizer


def test_a_model_that_sees_later_tokens_is_refused_from_its_configuration(recipe: Path, tiny: Path) -> None:
    folder = copytree(tiny, recipe.parent / "sees-right")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    with pytest.raises(RecipeError, match="not a causal"):
        plan_run(recipe, [f"model.base={folder}"])


BLOCKS = ("data={source: {file: rows.jsonl}, task: text, text: '{question} {answer}', max_tokens_per_example: 12, "
          "too_long: split, split: {valid: 0.1, test: 0.2}}")  # fmt: skip
SAID = ("data={source: {file: rows.jsonl}, task: chat, prompt: '{question} {note?}', response: '{answer}', "
        "split: {valid: 0.3, test: 0.3}}")  # fmt: skip
PREPARED = {
    "mixed": MIX,
    "blocks": [BLOCKS, "evaluate.metrics=[perplexity]", "evaluate.primary=perplexity"],
    "cut": ["data.max_tokens_per_example=38", "data.too_long=truncate", "data.near_duplicate_threshold=0.5"],
    "said": [SAID, "train.valid_metrics=[chrf]", "evaluate.metrics=[rougeL, perplexity]"],
    "slurm": ["launch.on=slurm", "launch.nodes=2", "promote={model: x}"],
}


@pytest.fixture
def same_machine(monkeypatch: pytest.MonkeyPatch, no_slurm: None) -> None:
    """What is free on the machine stays as it is."""
    monkeypatch.setattr(run_plan, "detect_hardware", lambda: Hardware("cpu", has_bf16=False, memory_gib=12.0))
    monkeypatch.setattr(run_plan, "_free", lambda _: 100.0)


def placeless(plan: RunPlan) -> RunPlan:
    """Return a plan without the state of its stages and without the run's folder."""
    return replace(plan, stages={}, run="", scripts={})


@pytest.mark.usefixtures("same_machine")
@pytest.mark.parametrize("changes", PREPARED.values(), ids=PREPARED)
def test_a_prepared_run_has_the_same_plan_with_and_without_its_sources(
    recipe: Path, changes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = recipe.parent / "rows.jsonl"
    if changes[0] == SAID:
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        said = [{**line, "question": "Say <|im_end|>." if i < 30 else line["question"], "note": ""}
                for i, line in enumerate(lines)]  # fmt: skip
        rows.write_text("".join(json.dumps(line) + "\n" for line in said))

    def planned() -> tuple[RunPlan, str]:
        capsys.readouterr()
        plan = plan_run(recipe, changes, out=recipe.parent / "run")
        return plan, capsys.readouterr().err

    before, told = planned()
    assert set(before.stages.values()) == {"to do"}
    assert bool(before.cut) == (changes == PREPARED["cut"])
    assert [("spell control tokens" in told), ("`note` is empty" in told)] == 2 * [changes[0] == SAID]
    run = run_recipe(recipe, changes, out=recipe.parent / "run", until="prepare")
    kept = tree(run.path)
    after = planned()
    for name in ("rows.jsonl", "more.jsonl"):
        (recipe.parent / name).unlink()
    gone = planned()
    assert after == gone
    assert after == (replace(before, stages={**before.stages, "prepare": "done"}), told)
    assert json.loads(json.dumps(gone[0].to_json())) == json.loads(json.dumps(after[0].to_json()))
    assert tree(run.path) == kept


@pytest.mark.usefixtures("same_machine")
def test_a_prepared_run_is_planned_wherever_it_is(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "project"
    project.mkdir()
    for name in ("recipe.yaml", "rows.jsonl"):
        (tmp_path / name).rename(project / name)
    first = placeless(plan_run(project / "recipe.yaml"))
    run = run_recipe(project / "recipe.yaml", until="prepare")
    (project / "rows.jsonl").unlink()
    (tmp_path / "link").symlink_to(project)
    copied = copytree(run.path, tmp_path / "other" / "place")
    for named in (project / "recipe.yaml", tmp_path / "link" / "recipe.yaml", run.path, copied):
        plan = plan_run(named)
        assert plan.stages["prepare"] == "done"
        assert placeless(plan) == first
    project.rename(tmp_path / "renamed")
    assert placeless(plan_run(run.path)) == first
    (tmp_path / "renamed" / "recipe.yaml").unlink()
    assert placeless(plan_run(copied)) == first


@pytest.mark.parametrize("act", [plan_run, run_recipe])
def test_a_changed_recipe_needs_the_sources(recipe: Path, act: Callable[..., object]) -> None:
    run = run_recipe(recipe, out=recipe.parent / "run", until="prepare")
    (recipe.parent / "rows.jsonl").unlink()
    before = tree(recipe.parent)
    with pytest.raises(DataError) as refused:
        act(recipe, ["data.train_rows=9"], out=recipe.parent / "new")
    assert (refused.value.exit_code, "rows.jsonl" in str(refused.value)) == (3, True)
    for named, out in ((run.path, None), (recipe, run.path)):
        with pytest.raises(RecipeError, match=r"data\.train_rows"):
            act(named, ["data.train_rows=9"], out=out)
    assert tree(recipe.parent) == before


def test_a_plan_refuses_other_rows_than_were_prepared(recipe: Path) -> None:
    run = run_recipe(recipe, out=recipe.parent / "run", until="prepare")
    (recipe.parent / "rows.jsonl").write_text("no row at all")
    with pytest.raises(RecipeError, match="source"):
        plan_run(recipe, out=run.path)


def test_metrics_that_were_added_are_called_on_prepared_rows(recipe: Path) -> None:
    run = run_recipe(recipe, out=recipe.parent / "run", until="prepare")
    (recipe.parent / "rows.jsonl").unlink()
    changes = ["evaluate.metrics=[json_field_f1]", "evaluate.primary=json_field_f1"]
    with pytest.raises(DataError, match="is not JSON") as refused:
        plan_run(run.path, changes)
    assert str(refused.value.where).startswith("rows.jsonl:")
