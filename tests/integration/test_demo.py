"""The demo's recipe names the real schema of its database, and runs scaled down on the embedded model."""

import contextlib
from pathlib import Path

import pytest

from tunesmith import export_model, load_recipe, run_recipe
from tunesmith.core.errors import VerdictRefused
from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.demo import SCHEMA, load
from tunesmith.proof.record import PROOF, read_proof
from tunesmith.recipe.schema import ChatData

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "demo" / "recipe.yaml"


def test_the_prompt_holds_the_schema_of_the_database() -> None:
    data = load_recipe(RECIPE).data
    assert isinstance(data, ChatData)
    assert data.system is not None
    assert SCHEMA in data.system


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> RunDir:
    """The run of three steps and six test rows, judged and refused."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    scaled = ["data.source.rows=200", "train.max_steps=3", "train.valid_every_steps=3", "evaluate.rows=6"]
    with contextlib.suppress(VerdictRefused):  # three steps teach the form of an answer, but hardly any correct one
        run_recipe(RECIPE, [*scaled, "evaluate.max_new_tokens=24"], out=folder)
    return RunDir(folder)


@pytest.mark.slow
@pytest.mark.model
def test_the_demo_runs_scaled_down(run: RunDir) -> None:
    verdict = read_json(run.verdict)
    assert verdict["primary"]["metric"] == "execution"
    assert verdict["health"]["tuned"]["rows"] == 6
    patterns = {row["pattern"] for row in load(200) if row["split"] == "test"}
    groups = [line["group"] for line in read_jsonl(run.evaluation("tuned") / "scores.jsonl")]
    assert set(groups) <= patterns
    assert verdict["primary"]["groups"] == len(set(groups))
    losses = [line["loss"] for line in read_jsonl(run.metrics) if line["kind"] == "valid"]
    assert losses[-1] < losses[0]
    assert "execution accuracy" in run.report.read_text(encoding="utf-8").lower()


@pytest.mark.slow
@pytest.mark.model
def test_llama_cpp_gives_the_answers_of_an_f16_export(run: RunDir, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra gguf-proof")
    export_model(str(run.path), tmp_path / "gguf", to="gguf", type="f16")
    proof = read_proof(tmp_path / "gguf" / PROOF)
    assert {check.status for check in proof.checks} == {"passed"}
    equal = next(measure for check in proof.checks for measure in check.measures if measure.name == "equal answers")
    assert (equal.value, equal.of) == (6, 6)
