"""The plan agrees with what the run does, and refuses what the run could not do."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copytree

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe as write_recipe
from tests.support.tiny import save_seq2seq
from tests.unit.plan.conftest import MIX

from tunesmith.core.errors import DataError, DoesNotFit, RecipeError, TunesmithError
from tunesmith.core.jsonl import read_jsonl, write_jsonl
from tunesmith.estimate.hardware import Hardware
from tunesmith.estimate.throughput import Speed
from tunesmith.pipeline.runner import run_recipe
from tunesmith.plan import run_plan, scaling
from tunesmith.plan.run_plan import RunPlan, plan_run
from tunesmith.recipe.general_set import MAX_LOSS

SLURM = ["launch.on=slurm", "launch.nodes=2"]


def test_plan_counts_the_rows_that_prepare_writes(recipe: Path) -> None:
    plan = plan_run(recipe, MIX)
    manifest = run_recipe(recipe, MIX, out=recipe.parent / "run", until="prepare").manifest("prepare")
    assert manifest is not None
    for key in ("sources", "filtered", "dropped", "cut", "unused", "blocks", "copies", "tokens", "lengths"):
        assert getattr(plan.rows, key) == manifest[key]
    assert plan.rows.counts == {split: manifest["counts"][split] for split in ("train", "valid", "test")}
    assert plan.steps.train_rows == plan.rows.counts["train"]


def test_plan_counts_truncated_and_unused_rows(recipe: Path) -> None:
    limit = plan_run(recipe).rows.longest - 1
    plan = plan_run(recipe, [f"data.max_tokens_per_example={limit}", "data.too_long=truncate", "data.train_rows=5"])
    [(reason, count)] = plan.rows.cut.items()
    assert str(limit) in reason
    assert count > 0
    assert sum(plan.rows.unused.values()) == plan_run(recipe).rows.counts["train"] - 5


@pytest.mark.parametrize(
    ("settings", "without_effect"),
    [
        ([], False),
        (["train.valid_every_steps=50"], True),  # only before the first and after the last step
        (["data.split={column: split}"], True),  # no valid rows
    ],
)
def test_plan_warns_if_training_cannot_stop_early(recipe: Path, settings: list[str], without_effect: bool) -> None:
    rows = [
        {**row, "split": "test" if place < 9 else "train"}
        for place, row in enumerate(read_jsonl(recipe.parent / "rows.jsonl"))
    ]
    write_jsonl(recipe.parent / "rows.jsonl", rows)
    plan = plan_run(recipe, ["train.stop_early={after_validations: 1}", *settings])
    assert any(warning.startswith("train.stop_early") for warning in plan.warnings) is without_effect


def test_plan_refuses_filters_that_leave_no_row(recipe: Path) -> None:
    with pytest.raises(DataError) as caught:
        plan_run(recipe, ["data.filters=[{column: answer, equals: nothing}]"])
    assert "60" in str(caught.value)


def test_plan_counts_blocks_of_documents_and_left_out_duplicates(recipe: Path) -> None:
    text = ("data={source: {file: rows.jsonl}, task: text, text: '{question} {answer}', max_tokens_per_example: 12, "
            "too_long: split, leakage: drop, near_duplicate_threshold: 0.5}")  # fmt: skip
    plan = plan_run(recipe, [text])
    assert (plan.rows.blocks["documents"], plan.rows.longest) == (60, 12)
    assert plan.rows.blocks["blocks"] > 60
    (recipe.parent / "rows.jsonl").write_text(
        "".join(f'{{"question": "Say one {i}.", "answer": "one", "fold": "{"train" if i % 9 else "test"}"}}\n'
                for i in (*range(18), *range(1, 4))) + '{"question": "Say one 5.", "answer": "one", "fold": "test"}\n'
    )  # fmt: skip
    # Documents this short are all prompt, so only likelihood metrics can score them.
    metrics = ["evaluate.metrics=[perplexity]", "evaluate.primary=perplexity"]
    plan = plan_run(recipe, [text.replace("near_duplicate_threshold: 0.5", "split: {column: fold}"), *metrics])
    assert sum(plan.rows.unused.values()) == 1
    pairs = {key: (plan.rows.copies[key]["exact"], plan.rows.copies[key]["near"]) for key in ("test", "left_out")}
    assert pairs == {"test": (0, 0), "left_out": (1, 0)}


def test_answered_valid_rows_are_limited_by_the_rows_there_are(recipe: Path) -> None:
    metrics = ["train.valid_metrics=[rougeL]", "train.select_best_by=rougeL"]
    assert plan_run(recipe, [*metrics, "train.valid_rows=3"]).workload.answered_valid_rows == 3
    plan = plan_run(recipe, [*metrics, "train.valid_rows=999"])
    assert plan.workload.answered_valid_rows == plan.rows.counts["valid"] > 3
    assert plan_run(recipe).workload.answered_valid_rows == 0


def test_plan_refuses_fp16_for_a_model_that_overflows(tmp_path: Path) -> None:
    data = {"source": {"file": "rows.jsonl"}, "task": "seq2seq", "prompt": "{question}", "response": "{answer}"}
    path = write_recipe(tmp_path, save_seq2seq(tmp_path / "t5"), data=data)
    assert plan_run(path).rows.counts["train"] > 0
    with pytest.raises(RecipeError) as caught:
        plan_run(path, ["model.precision=fp16"])
    assert "t5" in str(caught.value)


@pytest.mark.parametrize("every", [1, 2, 4, 9])
def test_plan_counts_the_validations_that_training_runs(recipe: Path, every: int) -> None:
    changes = [f"train.valid_every_steps={every}", "train.max_steps=4"]
    plan = plan_run(recipe, changes)
    run = run_recipe(recipe, changes, out=recipe.parent / "run", until="train")
    assert plan.steps.validations == sum(line["kind"] == "valid" for line in read_jsonl(run.metrics))
    assert plan.workload.valid_rows == (run.manifest("train") or {})["valid_loss_rows"] < plan.rows.counts["valid"]
    assert plan.workload.all_valid_tokens == plan.workload.valid_tokens * plan.steps.validations


def test_time_of_validation_and_generation_follows_the_measured_speeds(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_at(speed: Speed | None, *changes: str) -> RunPlan:
        monkeypatch.setattr(run_plan, "load_speed", lambda *_: speed)
        return plan_run(recipe, changes)

    monkeypatch.setattr(scaling, "estimate_rank_utilization", lambda *_: 1.0)
    unknown = plan_at(None)
    assert unknown.seconds is unknown.workload.validation_seconds is unknown.workload.generation_seconds is None
    trained = plan_at(Speed(100.0))
    read = trained.workload.all_valid_tokens
    assert trained.workload.validation_seconds == pytest.approx(read / 100), "an upper bound: the speed of training"
    assert trained.workload.generation_seconds is None
    measured = Speed(100.0, reading=300.0, writing=20.0)
    plan = plan_at(measured)
    assert plan.workload.validation_seconds == pytest.approx(read / 300)
    assert plan.workload.generated_tokens[1] == 2 * 8 * 8, "two models, 8 rows, at most 8 tokens"
    assert plan.workload.generation_seconds is not None
    assert plan.workload.generation_seconds[0] < plan.workload.generation_seconds[1] == pytest.approx(2 * 8 * 8 / 20)
    answering = plan_at(measured, "train.valid_metrics=[rougeL]", "train.valid_rows=3", "evaluate.rows=5")
    assert answering.workload.generated_tokens[1] == (2 * 5 + 3 * answering.steps.validations) * 8
    json.dumps(plan.to_json(), allow_nan=False)


SET = "{name: general, source: {file: more.jsonl}, task: completion, prompt: '{question}', response: '{answer}'"


@pytest.mark.usefixtures("same_machine")
def test_plan_reads_further_sets_and_counts_their_answers(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_plan, "load_speed", lambda *_: None)  # it depends on the load of the machine
    likelihood = (
        "{name: rows, source: {file: rows.jsonl}, task: text, text: '{question}', metrics: [perplexity], max_drop: 1}"
    )
    ours = "{source: {embedded: general}, name: ours, rows: 30}"
    sets = f"{SET}, metrics: [bleu], rows: 20, max_new_tokens: 5, max_drop: 0.1}}, {likelihood}, {ours}"
    changes = [f"evaluate.also=[{sets}]"]

    def planned() -> tuple[RunPlan, str]:
        capsys.readouterr()
        return plan_run(recipe, changes, out=recipe.parent / "run"), capsys.readouterr().err

    plan, log = planned()
    found = [(entry.name, entry.rows, entry.all_rows, entry.metric, entry.max_drop) for entry in plan.also]
    assert found[:2] == [("general", 20, 60, "bleu", 0.1), ("rows", 60, 60, "perplexity", 1)]
    assert (*found[2][:2], *found[2][3:]) == ("ours", 30, "loss", MAX_LOSS)
    assert 30 * 50 < plan.also[2].tokens < 30 * plan.also[2].longest
    assert 1 <= plan.workload.read_tokens / (2 * plan.also[2].tokens) < 3
    assert plan.workload.generated_tokens[1] == 2 * 8 * 8 + 2 * 20 * 5
    assert plan.workload.read_tokens > 0 == plan_run(recipe).workload.read_tokens
    assert "general: 20 of 60 rows" in str(plan)
    json.dumps(plan.to_json(), allow_nan=False)
    run_recipe(recipe, changes, out=recipe.parent / "run", until="prepare")
    assert planned() == (replace(plan, stages={**plan.stages, "prepare": "done"}), log)


@pytest.mark.parametrize(
    ("keys", "error", "code"),
    [
        ("metrics: [bleu], max_drop: 0.1, filters: [{column: question, equals: x}]", DataError, "no-rows"),
        ("metrics: [json_field_f1], max_drop: 0.1", DataError, "reference-not-json"),
        ("metrics: [bleu], max_drop: 0.1, max_new_tokens: 600", RecipeError, "prompt-too-long"),
    ],
)
def test_plan_refuses_a_wrong_further_set(recipe: Path, keys: str, error: type[TunesmithError], code: str) -> None:
    with raises(error, code, "`general`"):
        plan_run(recipe, [f"evaluate.also=[{SET}, {keys}}}]"])


def test_plan_without_valid_rows(recipe: Path) -> None:
    rows = [json.loads(line) for line in (recipe.parent / "rows.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "fold": "test" if i % 5 == 0 else "train"}) + "\n" for i, row in enumerate(rows)]
    (recipe.parent / "rows.jsonl").write_text("".join(lines))
    plan = plan_run(recipe, ["data.split={column: fold}"])
    assert plan.rows.counts["valid"] == plan.workload.valid_rows == 0
    assert "validation" not in str(plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [["train.packing=always"], ["tuning.dropout=0.1"], ["tuning={method: full}", "train.micro_batch=2"],
     ["train.activation_checkpointing=true", "train.packing=never"]],
    ids=["packed", "dropout", "full", "checkpointed"],
)  # fmt: skip
def test_plan_and_training_estimate_the_same_memory(recipe: Path, changes: list[str]) -> None:
    plan = plan_run(recipe, [*changes, "train.max_steps=2"])
    run = run_recipe(recipe, [*changes, "train.max_steps=2"], out=recipe.parent / "run", until="train")
    manifest = run.manifest("train")
    assert manifest is not None
    assert manifest["expected_memory"] == asdict(plan.cluster.memory)
    assert manifest["expected_memory_gib"] == pytest.approx(plan.cluster.memory.total, abs=1e-3)
    assert manifest["peak_memory_gib"] > 0.1


def test_a_plan_that_does_not_fit_is_returned_and_then_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_run(recipe).require_fit()
    monkeypatch.setattr(run_plan, "detect_hardware", lambda: Hardware("cpu", False, 0.2))
    plan = plan_run(recipe)
    assert "of 0.2 available" in str(plan)
    with raises(DoesNotFit, "not-enough-memory", f"{plan.cluster.memory.total:.1f} GiB", "0.2"):
        plan.require_fit()
    monkeypatch.undo()
    fits = plan_run(recipe)
    with raises(DoesNotFit, "not-enough-disk", "train.keep_checkpoints", where=fits.run):
        replace(fits, disk=replace(fits.disk, free=0.0)).require_fit()
    with raises(DoesNotFit, "not-enough-disk", "HF_HUB_CACHE"):
        replace(fits, disk=replace(fits.disk, to_fetch=2.0, fetch_free=1.0)).require_fit()
    offloaded = replace(fits.cluster, memory=replace(fits.cluster.memory, offloaded=2.0), offloaded_available=1.0)
    with raises(DoesNotFit, "not-enough-memory", "launch.offload"):
        replace(fits, cluster=offloaded).require_fit()


def test_plan_refuses_a_model_without_weights_and_rows_beyond_its_positions(tmp_path: Path, tiny: Path) -> None:
    path = write_recipe(tmp_path, copytree(tiny, tmp_path / "model"))
    positions = json.loads((tiny / "config.json").read_text())["max_position_embeddings"]
    long = {"question": "one " * positions, "answer": "two"}
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    with raises(RecipeError, "too-many-tokens", positions, where="data.max_tokens_per_example"):
        plan_run(path, ["data.max_tokens_per_example=100000"])
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(RecipeError) as caught:
        plan_run(path)
    assert str(caught.value.where).endswith("model")


def test_plan_refuses_a_model_without_causal_attention(recipe: Path, tiny: Path) -> None:
    folder = copytree(tiny, recipe.parent / "bidirectional")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    with pytest.raises(RecipeError) as caught:
        plan_run(recipe, [f"model.base={folder}"])
    assert "causal" in str(caught.value)


# --- Slurm ---


@pytest.mark.usefixtures("no_slurm")
def test_plan_has_the_batch_scripts_of_all_stages_and_writes_none(recipe: Path) -> None:
    out = recipe.parent / "run"
    plan = plan_run(recipe, [*SLURM, "promote={model: x}"], out=out)
    assert list(plan.scripts) == ["prepare", "train", "evaluate", "promote"]
    assert all(script in str(plan) for script in plan.scripts.values())
    assert not out.exists()
    assert plan_run(recipe).scripts == {}
    assert plan_run(recipe, SLURM).run == plan_run(recipe).run, "`launch` is not part of a run's identity"


def test_plan_asks_slurm_when_the_first_job_would_start(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts: list[str] = []
    monkeypatch.setattr("tunesmith.slurm.client.is_available", lambda: True)
    monkeypatch.setattr("tunesmith.slurm.client.estimate_start", lambda text: scripts.append(text) or "at noon")
    plan = plan_run(recipe, SLURM)
    assert scripts == list(plan.scripts.values())
    assert plan.slurm == "at noon"
    assert str(plan).endswith("at noon")


@pytest.mark.usefixtures("no_slurm")
def test_a_time_limit_too_short_for_a_checkpoint_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_run(recipe)
    interval = plan.training_tokens / plan.steps.total_steps * plan.steps.save_every_steps
    limit = [*SLURM, "launch.time_limit_minutes=15"]  # of which 5 are the grace period
    for minutes, is_refused in ((9, False), (11, True)):
        speed = Speed(interval / (60 * minutes) / 2)  # of each of two processes
        monkeypatch.setattr(run_plan, "load_speed", lambda *_, speed=speed: speed)
        assert plan_run(recipe, SLURM).slurm is None, "there is no time limit"
        on_gpus = plan_run(recipe, [*limit, "launch.gpus_per_node=1"])
        assert on_gpus.cluster.tokens_per_second is None, "the speed of a CPU does not apply to GPUs"
        if is_refused:
            with raises(RecipeError, "time-limit-too-short", 10, 11, where="launch.time_limit_minutes"):
                plan_run(recipe, limit)
        else:
            plan_run(recipe, limit)


def test_several_seeds_multiply_training_validation_and_checkpoints(recipe: Path) -> None:
    one, three = plan_run(recipe), plan_run(recipe, ["replicates=3"])
    assert three.run == one.run  # seeds can be added to a run
    assert three.training_tokens == 3 * one.training_tokens
    assert three.workload.all_valid_tokens == 3 * one.workload.all_valid_tokens
    assert three.workload.generated_tokens[1] == 2 * one.workload.generated_tokens[1]  # of 1 + 3 models instead of 2
    fixed = 0.05  # prepared rows, logs and the report
    assert three.disk.needed - fixed == pytest.approx(3 * (one.disk.needed - fixed))
    assert list(three.stages) == ["prepare", "train", "replicate", "evaluate"]
    assert "replicate" not in one.stages
    assert "3 seeds" in str(three)
