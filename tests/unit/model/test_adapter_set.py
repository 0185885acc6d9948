"""Several adapters on one base: each has the logits that it has alone, and the base is loaded once."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.tiny import save_model, save_plain_model
from tests.unit.model.test_new_tokens import adapted as adapted_with_new_tokens
from tests.unit.model.test_new_tokens import ids_of
from tests.unit.model.test_new_tokens import saved as save_with_new_tokens

from tunesmith import AdapterSet, open_chatter
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_json
from tunesmith.fetch.reference import CARD, ModelFolder, resolve
from tunesmith.model.adapters import open_model
from tunesmith.model.adapters import save_model as save
from tunesmith.model.load import ComputeConfig, choose_compute, load_base, without_adapter
from tunesmith.model.trainable import make_trainable, trained_parameters
from tunesmith.recipe.tuning import LoraTuning, QloraTuning, Quantization

IDS = torch.arange(5, 45).reshape(2, 20)
CPU = torch.device("cpu")
FP32 = ComputeConfig(CPU, torch.float32)
EACH_PROCESSOR = pytest.mark.usefixtures("processor")
KINDS: dict[str, dict[str, Any]] = {
    "one": {"rank": 4},
    "two": {"rank": 4, "alpha": 8, "target": ("q_proj", "up_proj")},
    "three": {"rank": 2, "rslora": True},
    "dora": {"rank": 4, "dora": True},
}


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(input_ids=ids).logits
        return result


def perturbed(model: Any, seed: int) -> Any:
    """Return the model with random changes to its trained weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in trained_parameters(model):
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "llama", "llama")


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Adapters of several kinds on one base, by name."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, settings) in enumerate(KINDS.items()):
        model = make_trainable(
            load_base(ModelFolder("x", base), FP32), LoraTuning(method="lora", **settings), seed=seed
        )
        save(perturbed(model, seed + 10), root / name, base=str(base))
    return {name: str(root / name) for name in KINDS}


def alone(reference: str, compute: ComputeConfig | None = None) -> torch.Tensor:
    return logits(open_model(resolve(reference), compute or choose_compute()))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_active_adapter_and_disabled_adapters_have_their_own_logits(
    base: Path, folders: dict[str, str], precision: Any
) -> None:
    compute = choose_compute(precision)
    adapters = AdapterSet(folders, precision=precision)
    assert adapters.names == tuple(KINDS)
    assert adapters.active == "one"
    for name in (*KINDS, *reversed(KINDS)):
        assert torch.equal(logits(adapters.use(name)), alone(folders[name], compute)), name
        assert adapters.active == name
        with adapters.base() as model:
            assert torch.equal(logits(model), logits(load_base(ModelFolder("x", base), compute)))
        assert torch.equal(logits(adapters.model), alone(folders[name], compute)), name
        assert not any(weight.requires_grad for weight in adapters.model.parameters())


@EACH_PROCESSOR
def test_base_is_loaded_once(base: Path, folders: dict[str, str]) -> None:
    def weight_bytes(model: Any) -> int:
        return sum({w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in model.parameters()}.values())

    own = weight_bytes(load_base(ModelFolder("x", base), choose_compute()))
    each = [weight_bytes(open_model(resolve(reference), choose_compute())) - own for reference in folders.values()]
    assert weight_bytes(AdapterSet(folders).model) == own + sum(each)
    assert sum(each) < own


def test_combine_sums_adapters(folders: dict[str, str], processor: str) -> None:
    def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        return float((actual.float() - expected.float()).norm() / expected.float().norm())

    tolerance = 1e-4 if processor == "fp32" else 0.02  # peft stores the sum in the dtype of the base
    adapters = AdapterSet({name: folders[name] for name in ("one", "two", "three")})
    adapters.combine("sum", {"one": 0.7, "three": -0.4})
    assert adapters.active == "one"
    layer = adapters.model.base_model.model.model.layers[0].mlp.down_proj
    updates = [layer.get_delta_weight(f"adapter-{number}") for number in (0, 2, 3)]  # one, three and their sum
    assert error(updates[2], 0.7 * updates[0] - 0.4 * updates[1]) < tolerance
    combined = logits(adapters.use("sum"))
    assert not torch.allclose(combined, alone(folders["one"]))
    assert torch.equal(logits(adapters.use("one")), alone(folders["one"]))
    for method in ("svd", "linear"):
        adapters.combine(method, {"one": 1.0, "two": 1.0} if method == "linear" else {"one": 0.5, "three": 0.5},
                         method=method)  # fmt: skip
        assert not torch.equal(logits(adapters.use(method)), combined)
    # A single adapter with weight 1 is that adapter.
    adapters.combine("same", {"one": 1.0})
    assert error(logits(adapters.use("same")), alone(folders["one"])) < tolerance


@pytest.mark.parametrize(
    ("name", "weights", "method", "code", "named"),
    [
        ("one", {"two": 1.0}, "cat", "cannot-combine", "one"),
        ("new", {}, "cat", "cannot-combine", ""),
        ("new", {"tow": 1.0}, "cat", "no-such-adapter", "tow"),
        ("new", {"one": 1.0, "dora": 1.0}, "cat", "cannot-combine", "dora"),
        ("new", {"one": 1.0, "three": 1.0}, "linear", "cannot-combine", ""),
    ],
)
def test_adapters_that_cannot_be_combined_are_refused(
    folders: dict[str, str], name: str, weights: dict[str, float], method: Any, code: str, named: str
) -> None:
    adapters = AdapterSet(folders)
    with raises(RecipeError, code, named):
        adapters.combine(name, weights, method=method)
    assert torch.equal(logits(adapters.use("two")), alone(folders["two"]))


def test_adapters_of_different_bases_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", "llama", seed=5)
    model = perturbed(make_trainable(load_base(ModelFolder("x", other), FP32), LoraTuning(method="lora"), seed=0), 1)
    save(model, tmp_path / "adapter", base=str(other))
    with raises(RecipeError, "different-bases", where="other"):
        AdapterSet({"one": folders["one"], "other": str(tmp_path / "adapter")})
    with raises(RecipeError, "not-an-adapter", where="base"):
        AdapterSet({"one": folders["one"], "base": str(other)})
    with raises(RecipeError, "no-such-adapter"):
        AdapterSet({})
    with raises(RecipeError, "no-such-adapter", "two"):
        AdapterSet({"one": folders["one"]}).use("two")


@EACH_PROCESSOR
def test_adapters_share_a_quantized_base(base: Path, folders: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    quantization = Quantization(bits=4)
    for seed in (0, 1):
        model = load_base(ModelFolder("x", base), FP32, quantization=quantization)
        save(perturbed(make_trainable(model, QloraTuning(method="qlora"), seed=seed), seed), tmp_path / f"{seed}",
             base=str(base))  # fmt: skip
        write_json(tmp_path / f"{seed}" / CARD, {"base": str(base), "quantization": quantization.model_dump()})
    references = {name: str(tmp_path / name) for name in ("0", "1")}
    adapters = AdapterSet(references)
    for name, reference in references.items():
        assert torch.equal(logits(adapters.use(name)), alone(reference))
    with raises(RecipeError, "different-bases", "nf4", where="one"):
        AdapterSet({"0": references["0"], "one": folders["one"]})


@EACH_PROCESSOR
def test_adapters_with_new_tokens_can_be_switched(tmp_path: Path) -> None:
    folder = save_plain_model(tmp_path / "base", "gpt2")
    base = ModelFolder(str(folder), folder)
    compute = choose_compute()
    first, second = (
        adapted_with_new_tokens(base, compute=compute),
        adapted_with_new_tokens(base, LoraTuning(method="lora", rank=2), compute),
    )
    plain = perturbed(make_trainable(load_base(base, compute), LoraTuning(method="lora"), seed=0), 1)
    save(plain, tmp_path / "plain", base=str(folder))
    for name, model in {"a": first, "b": second}.items():
        save_with_new_tokens(model, tmp_path / name, base)
        write_json(tmp_path / name / CARD, {"base": str(folder), "chat_markup": "chatml"})
    adapters = AdapterSet({name: str(tmp_path / name) for name in ("plain", "a", "b")})
    ids = ids_of(base)
    for name, model in {"a": first, "b": second, "a again": first}.items():
        assert torch.equal(logits(adapters.use(name[0]), ids), logits(model, ids)), name
    known = logits(plain).shape[-1]
    assert torch.equal(logits(adapters.use("plain"))[..., :known], logits(plain))
    with raises(RecipeError, "cannot-combine", "`a`"):
        adapters.combine("sum", {"a": 1.0, "plain": 1.0})
    chatter = open_chatter("a", adapters=adapters)
    assert chatter.keeps_turns
    assert chatter.ask("Say one.", max_new_tokens=4) == open_chatter(str(tmp_path / "a")).ask(
        "Say one.", max_new_tokens=4
    )


def rows_of(adapters: AdapterSet, names: list[str | None], ids: torch.Tensor = IDS) -> torch.Tensor:
    with adapters.select(names):
        return logits(without_adapter(adapters.model), ids)


def test_rows_of_one_batch_have_their_own_adapters(base: Path, folders: dict[str, str]) -> None:
    adapters = AdapterSet(folders, precision="fp32")
    assert [adapters.group(name) for name in (None, "one", "two", "three", "dora")] == [None] * 4 + ["dora"]
    names: list[str | None] = ["two", None, "one", "two", "three", None]
    ids = torch.arange(5, 65).reshape(6, 10)
    mixed = rows_of(adapters, names, ids)
    for place, name in enumerate(names):
        with adapters.base() if name is None else nullcontext(adapters.use(name)) as model:
            torch.testing.assert_close(mixed[place], logits(model, ids)[place], atol=1e-5, rtol=1e-5)
    assert torch.equal(rows_of(adapters, ["dora"] * 2), alone(folders["dora"], FP32))
    assert torch.equal(rows_of(adapters, [None] * 2), logits(load_base(ModelFolder("x", base), FP32)))
    with pytest.raises(ValueError):  # noqa: PT011 (they cannot share a batch)
        rows_of(adapters, ["one", "dora"])
    assert torch.equal(logits(adapters.use("one")), alone(folders["one"], FP32)), "the active adapter still works"


def test_adapters_are_added_and_removed_while_others_stay(base: Path, folders: dict[str, str]) -> None:
    folder = ModelFolder("x", base)
    adapters = AdapterSet({}, precision="fp32", base=folder)
    plain = logits(load_base(folder, FP32))
    inner = without_adapter(adapters.model)
    for name in ("one", "dora", "two"):
        adapters.add(name, resolve(folders[name]))
        assert torch.equal(rows_of(adapters, [name] * 2), alone(folders[name], FP32)), name
        assert torch.equal(rows_of(adapters, [None] * 2), plain), name
    with raises(RecipeError, "no-such-adapter", "one"):
        adapters.add("one", resolve(folders["one"]))
    for name in ("dora", "one", "two"):
        adapters.remove(name)
        with raises(RecipeError, "no-such-adapter", name):
            adapters.group(name)
        assert torch.equal(rows_of(adapters, [None] * 2), plain)
        for other in adapters.names:
            assert torch.equal(rows_of(adapters, [other] * 2), alone(folders[other], FP32)), (name, other)
    adapters.add("again", resolve(folders["three"]))
    assert torch.equal(rows_of(adapters, ["again"] * 2), alone(folders["three"], FP32))
    assert without_adapter(adapters.model) is inner
    assert sum("lora" in name for name, _ in adapters.model.named_parameters()) == 2 * 14


def test_adapters_that_need_new_embedding_rows_are_only_opened_together(tmp_path: Path) -> None:
    folder = save_plain_model(tmp_path / "base", "gpt2")
    base = ModelFolder(str(folder), folder)
    save_with_new_tokens(adapted_with_new_tokens(base, compute=FP32), tmp_path / "a", base)
    write_json(tmp_path / "a" / CARD, {"base": str(folder), "chat_markup": "chatml"})
    adapters = AdapterSet({}, precision="fp32", base=base)
    with raises(RecipeError, "different-bases", where="a"):
        adapters.add("a", resolve(str(tmp_path / "a")))
    both = AdapterSet({"a": str(tmp_path / "a")}, precision="fp32")
    assert both.group("a") == "a"
    assert both.vocabulary(None) == adapters.vocabulary(None) < both.vocabulary("a")


def test_layers_whose_input_is_not_in_rows_do_not_share_a_batch(folders: dict[str, str], base: Path) -> None:
    adapters = AdapterSet({}, precision="fp32", base=ModelFolder("x", base))
    layer = without_adapter(adapters.model).model.layers[0].mlp
    forward = layer.forward
    layer.forward = lambda x: forward(x.flip(0)).flip(0)  # as experts get their tokens in another order
    adapters.add("one", resolve(folders["one"]))
    assert adapters.group("one") is None, "rows 0 and 2 have the same adapter"
    layer.forward = lambda x: forward(x.roll(1, 0)).roll(-1, 0)
    adapters.add("two", resolve(folders["two"]))
    assert adapters.group("two") == "two"
