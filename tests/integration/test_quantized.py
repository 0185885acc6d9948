"""QLoRA from the recipe to the registry and back: both models on quantized weights, merged into the base's own."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe

from tunesmith import export_model, open_chatter, plan_run, run_recipe
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json
from tunesmith.fetch.reference import CARD, ModelFolder, resolve

pytest.importorskip("bitsandbytes")

LIKELIHOODS = {"metrics": ["perplexity", "token_accuracy"], "primary": "perplexity", "rows": 8, "max_new_tokens": 6}
QLORA = {"method": "qlora", "rank": 4, "alpha": 8}


@pytest.mark.parametrize(("bits", "processor"), [(4, "fp32"), (4, "bf16"), (8, "fp32")], indirect=["processor"])
def test_a_promoted_model_opens_on_quantized_weights(tmp_path: Path, tiny: Path, bits: int, processor: str) -> None:
    import torch

    from tunesmith.model.adapters import open_model
    from tunesmith.model.load import choose_compute

    model = {"base": str(tiny)}  # in the precision of the processor
    file = recipe(
        tmp_path,
        tiny,
        model=model,
        tuning={**QLORA, "bits": bits},
        evaluate=LIKELIHOODS,
        promote={"model": "small", "min_gain": 0.0},
    )
    assert plan_run(file).method == "qlora"
    run = run_recipe(file, out=tmp_path / "run")
    words = "int8" if bits == 8 else "nf4 with double quantization"
    verdict = read_json(run.verdict)
    assert verdict["verdict"] == "better"
    assert verdict["conditions"] == {"precision": processor, "quantization": words, "chat_markup": None}
    assert any(words in reason for reason in verdict["reasons"])
    assert words in run.report.read_text(encoding="utf-8")
    facts = run.manifest("train") or {}
    assert facts["quantization"] == words

    kind = "Linear4bit" if bits == 4 else "Linear8bitLt"
    for reference in (f"run:{run.path}", "small@staging", str(resolve("small@staging").path)):
        found = resolve(reference)
        assert read_json(found.path / CARD)["quantization"]["bits"] == bits
        opened = open_model(found, choose_compute())
        assert any(type(module).__name__ == kind for module in opened.modules())
        assert isinstance(open_chatter(reference).ask("Say one and cat.", max_new_tokens=4), str)

    # The base was evaluated on quantized weights too: its perplexity differs from that of unquantized weights.
    plain = run_recipe(recipe(tmp_path, tiny, model=model, evaluate=LIKELIHOODS), out=tmp_path / "plain")
    assert read_json(plain.verdict)["primary"]["base"] != verdict["primary"]["base"]
    assert "quantization" not in read_json(plain.verdict)["reasons"][-1]

    # Merged into unquantized weights, which the adapter was not trained on: the proof compares with those that it was.
    exported = export_model(
        "small@staging", tmp_path / "merged", to="merged", force=True, reason="4 bits of a tiny model"
    )
    assert exported.proof is not None
    assert words in exported.proof.reference.values()
    folder = exported.folder
    merged = open_model(resolve(str(folder)), choose_compute("fp32"))
    wanted = open_model(resolve("small@staging"), choose_compute("fp32"), merged=True)
    assert all(torch.equal(one, other) for one, other in zip(merged.parameters(), wanted.parameters(), strict=True))
    assert {type(module).__name__ for module in merged.modules()}.isdisjoint({kind})
    assert isinstance(open_chatter(str(folder)).ask("Say one and cat.", max_new_tokens=4), str)


def test_a_plan_without_bitsandbytes_is_refused(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
    )
    file = recipe(tmp_path, tiny, tuning=QLORA)
    with raises(RecipeError, "missing-package", "bitsandbytes"):
        plan_run(file)
    plan_run(file, ["tuning={method: lora}"])


@pytest.mark.model
def test_the_embedded_model_learns_in_four_and_eight_bits_as_in_full(smollm2: Path) -> None:
    """Ten steps on one batch: fewer bits need less memory, and the loss falls as with unquantized weights."""
    import torch

    from tunesmith.model.load import ComputeConfig, load_base
    from tunesmith.model.trainable import make_trainable
    from tunesmith.recipe.tuning import LoraTuning, QloraTuning, Quantization
    from tunesmith.tasks.tokenizer import TokenizerAdapter

    text = "Question: how many orders did Ada place? Answer: SELECT count(*) FROM orders WHERE customer = 'Ada';"
    ids = torch.tensor([TokenizerAdapter.load(smollm2).encode_trusted(text)])
    compute = ComputeConfig(torch.device("cpu"), torch.float32)
    kinds: dict[str, Any] = {"fp32": None, "int8": Quantization(bits=8), "nf4": Quantization(bits=4)}
    sizes, losses = {}, {}
    for name, quantization in kinds.items():
        model = load_base(ModelFolder("smollm2", smollm2), compute, quantization=quantization)
        sizes[name] = model.get_memory_footprint()
        chosen = LoraTuning(method="lora", rank=8) if quantization is None else QloraTuning(method="qlora", rank=8)
        model = make_trainable(model, chosen, seed=0)
        optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-3)
        losses[name] = []
        for _ in range(6):
            loss = model(input_ids=ids, labels=ids).loss
            losses[name].append(float(loss.detach()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert sizes["nf4"] < sizes["int8"] < sizes["fp32"]
    assert sizes["nf4"] < 0.4 * sizes["fp32"]
    assert losses["int8"][0] == pytest.approx(losses["fp32"][0], rel=0.05)
    assert losses["nf4"][0] == pytest.approx(losses["fp32"][0], rel=0.3)  # a small model loses more to 4 bits
    for found in losses.values():
        assert found[-1] < 0.6 * found[0]
