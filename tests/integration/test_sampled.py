"""A run with several sampled answers per row: resumed between two of them, and asked again if settings change."""

from pathlib import Path
from typing import Any

from tests.support.tiny import recipe

from tunesmith import run_recipe
from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir

EVALUATE = {
    "metrics": ["exact_match", "rougeL"], "primary": "rougeL", "rows": 6, "max_new_tokens": 6, "samples": 3,
    "sampling": {"temperature": 1.0, "top_p": 0.9}, "stop": ["e"],
}  # fmt: skip
TRAIN = {"learning_rate": 0.03, "max_steps": 3, "examples_per_step": 8, "valid_metrics": ["rougeL"], "valid_rows": 4}


def answers(folder: Path) -> list[dict[str, Any]]:
    return sorted(read_jsonl(folder / "generations.jsonl"), key=lambda line: (line["row"], line["sample"]))


def test_sampled_run(tmp_path: Path, tiny: Path) -> None:
    sections = {"evaluate": EVALUATE, "train": TRAIN}
    run = RunDir(tmp_path / "run")

    def evaluate(**changes: Any) -> dict[str, Any]:
        sections["evaluate"] = {**EVALUATE, **changes}
        run_recipe(recipe(tmp_path, tiny, **sections), out=run.path, until="evaluate")
        return dict(read_json(run.verdict))

    verdict = evaluate()
    first = {name: answers(run.evaluation(name)) for name in ("base", "tuned")}
    for lines in first.values():
        assert [line["sample"] for line in lines] == [1, 2, 3] * 6
        assert len({line["prediction"] for line in lines}) > 6
        assert not any("e" in line["prediction"] for line in lines)
    assert list(verdict["metrics"]) == ["exact_match", "exact_match@pass2", "exact_match@pass3", "rougeL"]
    assert verdict["primary"]["rows"] == 6
    assert verdict["health"]["tuned"]["rows"] == 18
    validated = list(read_jsonl(run.valid_answers(3)))
    assert len(validated) == 4
    assert not any("e" in line["prediction"] for line in validated)
    # killed between two answers of the tuned model
    log = run.evaluation("tuned") / "generations.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:7]) + b'{"id": "')
    (run.stage("evaluate") / "manifest.json").unlink()
    assert evaluate() == verdict
    assert answers(run.evaluation("tuned")) == first["tuned"]
    # another number of samples asks again, and keeps those that are the same
    assert evaluate(samples=2)["metrics"].keys() == {"exact_match", "exact_match@pass2", "rougeL"}
    fewer = answers(run.evaluation("tuned"))
    assert fewer == [line for line in first["tuned"] if line["sample"] < 3]
