"""All systems get the same rows, and a system that read other tokens is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.versus.generating import questions
from benchmarks.versus.jobs import Job, Unequal, make_job
from benchmarks.versus.measure import Measured
from benchmarks.versus.rows import rows_of, varied
from benchmarks.versus.settings import OURS, System, peers
from benchmarks.versus.training import best_of_each

from tunesmith.core.rundir import RunDir
from tunesmith.data.sampler import batch_indices
from tunesmith.data.token_dataset import TokenDataset


def job(**changes: object) -> Job:
    made = Job(Path(), 2, 2, 1e-4, False, tokens=[100, 80], trained=[10, 8], longest=64, gpu=False)
    return replace(made, **changes)


def steps_of(*pairs: tuple[int, int]) -> list[dict[str, int]]:
    return [{"tokens": tokens, "trained_tokens": trained} for tokens, trained in pairs]


def test_equal_tokens_are_accepted() -> None:
    job().must_equal(OURS, steps_of((100, 10), (80, 8)))
    job().must_equal(OURS, steps_of((100, 10)))  # stopped after its first step


@pytest.mark.parametrize("counts", [[(101, 10)], [(100, 11)], [(100, 10), (80, 9)]])
def test_unequal_tokens_are_refused(counts: list[tuple[int, int]]) -> None:
    with pytest.raises(Unequal) as caught:
        job().must_equal(System("trl", "x", ""), steps_of(*counts))
    assert "trl-x" in str(caught.value)


def test_rows_in_another_order_must_have_the_same_sum() -> None:
    grouped = System("trl", "grouped", "", {"grouped": True})
    job().must_equal(grouped, steps_of((80, 8), (100, 10)))
    with pytest.raises(Unequal):
        job().must_equal(grouped, steps_of((80, 8), (100, 11)))


def test_rows_of_the_demo_replace_missing_rows(tmp_path: Path) -> None:
    rows = rows_of("viggo", 5, shared=tmp_path)
    assert len(rows.rows) == 5
    assert rows.instead is not None
    assert "viggo" in rows.instead
    assert set(rows.rows[0]) == {"prompt", "response"}


def test_real_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "viggo").mkdir()
    (tmp_path / "viggo" / "viggo-train.csv").write_text('mr,ref\n"inform(a, b)",It is.\n', encoding="utf-8")
    (tmp_path / "dialogsum").mkdir()
    line = json.dumps({"dialogue": "#Person1#: Hi.", "summary": "A greeting."})
    (tmp_path / "dialogsum" / "dialogsum.train.jsonl").write_text(line + "\n", encoding="utf-8")
    viggo, dialogsum = rows_of("viggo", 3, shared=tmp_path), rows_of("dialogsum", 1, shared=tmp_path)
    assert viggo.instead is None
    assert viggo.rows == [{"prompt": "inform(a, b)", "response": "It is."}] * 3
    assert dialogsum.rows[0]["prompt"] == "Summarize the dialogue.\n\n#Person1#: Hi."


def test_varied_rows_differ() -> None:
    few = rows_of("viggo", 3, shared=Path("absent")).rows
    assert len({row["prompt"] for row in varied(few, 50)}) == 50


def test_peers_get_the_tokens_of_our_steps_in_order(tmp_path: Path, tiny: Path) -> None:
    rows = [{"prompt": f"Say {number}.", "response": f"{number} it is"} for number in range(20)]
    made = make_job(tmp_path / "job", rows, steps=3, examples_per_step=4, base=str(tiny))
    rows_for_peers = [json.loads(line) for line in made.rows.read_text(encoding="utf-8").splitlines()]
    tokens = TokenDataset(RunDir(made.prepared).tokens("train"))
    first = batch_indices(0, rows=len(tokens), examples_per_step=4, total_examples=12, seed=0)
    assert len(rows_for_peers) == 12
    assert [row["input_ids"] for row in rows_for_peers[:4]] == [
        list(tokens.example(row, "").input_ids) for row in first
    ]
    assert made.tokens[0] == sum(len(row["input_ids"]) for row in rows_for_peers[:4])
    assert made.trained[0] == sum(label != -100 for row in rows_for_peers[:4] for label in row["labels"])
    assert [turn["role"] for turn in (*rows_for_peers[0]["prompt"], *rows_for_peers[0]["completion"])] == [
        "user",
        "assistant",
    ]
    prompts = questions(made.rows)
    assert len(prompts["stop_ids"]) == 1
    assert all(row["input_ids"][: len(p)] == p for row, p in zip(rows_for_peers, prompts["prompts"], strict=True))


def measured(speed: float | None) -> Measured:
    step = {"seconds": 1.0, "tokens": speed or 0}
    return Measured([{"step": n, **step} for n in (1, 2, 3)] if speed else [], 1.0, None, error=None if speed else "no")


def test_best_of_each_keeps_defaults_and_the_fastest() -> None:
    default, fast = System("trl", "default", ""), System("trl", "fast", "")
    other, broken = System("torchtune", "fp32", ""), System("unsloth", "bf16", "")
    tried = {default: measured(50), fast: measured(100), other: measured(20), broken: measured(None)}
    assert best_of_each(tried) == [default, fast, other]
    assert best_of_each({**tried, fast: measured(151)}) == [fast, other], (
        "a default that is far too slow is not run again"
    )
    assert best_of_each({default: measured(50)}) == [default]


@pytest.mark.parametrize(("gpu", "full", "quick"), [(g, f, q) for g in (0, 1) for f in (0, 1) for q in (0, 1)])
def test_every_setting_has_a_unique_name_and_a_worker(gpu: bool, full: bool, quick: bool) -> None:
    systems = peers(gpu=gpu, bf16=gpu, full=full, quick=quick)
    workers = Path(__file__).resolve().parents[3] / "benchmarks" / "versus" / "workers"
    assert len({system.name for system in systems}) == len(systems) >= 3
    assert all((workers / system.worker).exists() for system in (OURS, *systems))
    assert (systems[0].name == "trl-default") == (gpu or not quick)
