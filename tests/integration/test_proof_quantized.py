"""An export of an adapter that was trained on a quantized base is compared with the adapter on both bases."""

from pathlib import Path

import pytest
import torch
from tests.support.tiny import change_weights, one_thread, save_model

from tunesmith.core.files import write_json
from tunesmith.engines.transformers_folder import TransformersFolder
from tunesmith.fetch.reference import CARD, ModelFolder, base_card, resolve
from tunesmith.model import adapters
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.model.plain_folder import write_plain_model
from tunesmith.model.trainable import make_trainable, trained_parameters
from tunesmith.proof.prove import prove
from tunesmith.proof.record import Proof
from tunesmith.proof.text import proof_text
from tunesmith.recipe.tuning import QloraTuning, Quantization

pytest.importorskip("bitsandbytes")
FP32 = ComputeConfig(torch.device("cpu"), torch.float32)
NF4 = Quantization(bits=4)
TRAINED, FILES = f"on the base in {NF4}, as trained", "on the base's files"


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """A LoRA adapter on a tiny model in 4 bits, with random weights."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    base = resolve(str(save_model(tmp_path / "base", "llama")))
    model = load_base(base, FP32, quantization=NF4)
    model = make_trainable(model, QloraTuning(method="qlora", rank=4, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in trained_parameters(model):
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    folder = tmp_path / "adapter"
    adapters.save_model(model, folder, base=str(base.path))
    write_json(folder / CARD, {**base_card(base, folder), "quantization": NF4.model_dump()})
    return resolve(str(folder))


def proof_of(tuned: ModelFolder, folder: Path) -> Proof:
    with one_thread():
        return prove(tuned, TransformersFolder(folder), type="f32")


def status(proof: Proof, name: str) -> str:
    return next(check.status for check in proof.checks if check.name == name)


def assert_base_is(nearest: str, other: str, proof: Proof) -> None:
    """Require that the engine has one of the two bases, which the check tells from the other one."""
    check = next(check for check in proof.checks if check.name == "base")
    mean_kl = {m.name.split(", ", 1)[1]: m.value for m in check.measures if m.name.startswith("mean KL")}
    assert check.status == "passed", proof_text(proof)
    assert mean_kl[nearest] < 1e-6 < 1e-4 < mean_kl[other]
    assert check.details == (f"the engine gives the adapter {nearest}",)


@pytest.mark.slow
def test_a_merged_export_is_the_adapter_on_the_files_of_the_base(tuned: ModelFolder, tmp_path: Path) -> None:
    write_plain_model(tuned, tmp_path / "merged")
    assert_base_is(FILES, TRAINED, proof_of(tuned, tmp_path / "merged"))


@pytest.mark.slow
def test_a_merge_into_the_quantized_weights_is_the_model_as_trained(tuned: ModelFolder, tmp_path: Path) -> None:
    write_plain_model(tuned, tmp_path / "merged")
    dequantized = adapters.open_model(tuned, FP32).get_base_model().dequantize()
    sums = {
        f"{name}.weight": module.base_layer.weight + module.get_delta_weight("default")
        for name, module in dequantized.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert len(sums) == 14
    change_weights(tmp_path / "merged", lambda name, weight: sums.get(name, weight))
    assert_base_is(TRAINED, FILES, proof_of(tuned, tmp_path / "merged"))


@pytest.mark.slow
def test_a_fault_within_the_limits_of_the_quantization_is_found(tuned: ModelFolder, tmp_path: Path) -> None:
    write_plain_model(tuned, tmp_path / "merged")
    change_weights(tmp_path / "merged", lambda name, weight: weight * 1.15 if "lm_head" in name else weight)
    proof = proof_of(tuned, tmp_path / "merged")
    assert status(proof, "logits") == "passed", proof_text(proof)
    assert status(proof, "base") == "failed", proof_text(proof)
    assert not proof.passed
