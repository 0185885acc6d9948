"""A real vLLM serves the merged folder and the adapter's folder of a tuned model with its answers.

Skipped unless TUNESMITH_VLLM_PYTHON names the Python of an environment with vLLM (docs/proof.md has the commands for a
machine without a GPU). Each of the two servers takes about a minute to start.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.tiny import one_thread, recipe, save_model

from tunesmith import run_recipe
from tunesmith.engines.detect import detect_engine
from tunesmith.engines.vllm import PYTHON_VARIABLE, start_vllm
from tunesmith.export import adapter, merged
from tunesmith.export.formats import Options
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.proof.prove import prove
from tunesmith.proof.text import proof_text

pytestmark = pytest.mark.skipif(not os.environ.get(PYTHON_VARIABLE), reason=f"{PYTHON_VARIABLE} is not set")

SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}  # which vLLM has
OPTIONS = ("--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4", "--enforce-eager")
# The sampling that many bases recommend. vLLM applies it to every request, even to greedy ones (the penalty).
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.5}
CHECKS = ("ids", "template", "logits", "answers", "verdict")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """An adapter of rank 4 on a base with sampling defaults."""
    folder = tmp_path_factory.mktemp("vllm")
    base = save_model(folder / "base", "llama", **SHAPE)
    settings = base / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **SAMPLING}))
    run_recipe(recipe(folder, base, train={"learning_rate": 0.01, "max_steps": 8}), out=folder / "run")
    return resolve(f"run:{folder / 'run'}")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vLLM compute in one thread with little memory, if it runs on a CPU."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def check(
    tuned: ModelFolder, folder: Path, *options: str, adapters: Mapping[str, Path] | None = None, asked: str
) -> None:
    engine = start_vllm(folder, name="model", adapters=adapters, options=(*OPTIONS, *options))
    try:
        assert engine.name.startswith("vLLM ")
        assert detect_engine(engine.url, asked).engine.name == engine.name
        with one_thread():
            proof = prove(tuned, engine, type="f32")
    finally:
        engine.close()
    assert {one.name: one.status for one in proof.checks} == dict.fromkeys(CHECKS, "passed"), proof_text(proof)


def test_a_merged_folder_has_no_sampling_of_the_base(tuned: ModelFolder, tmp_path: Path) -> None:
    merged.build(tuned, tmp_path, Options(type="f32"))
    check(tuned, tmp_path, "--generation-config", "auto", asked="model")


def test_an_adapter_is_served_on_its_base(tuned: ModelFolder, tmp_path: Path) -> None:
    adapter.build(tuned, tmp_path, Options())
    assert tuned.base is not None
    check(tuned, tuned.base.path, adapters={"tuned": tmp_path}, asked="tuned")
