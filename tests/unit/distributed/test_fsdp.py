"""Layers in parts, here all in one process; tests/integration/test_sharding.py has many."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.train.conftest import random_rows
from torch import distributed

from tunesmith.core.dist_env import RankInfo
from tunesmith.core.errors import DoesNotFit, RecipeError
from tunesmith.core.files import write_json
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.data.token_file import write_tokens
from tunesmith.distributed.fsdp import (
    agree_on_reason,
    is_sharded,
    lockstep_forward,
    lockstep_micro_batches,
    memory_budget,
    shard,
    sharded_layers,
)
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.distributed.sharded_state import gather_full_state_dict, read_shards, write_shards
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.inference.generate import generate
from tunesmith.kernels.oom import OomRetry
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.adapters import count_parameters, make_trainable, open_model, restore_weights
from tunesmith.model.adapters import save_model as save
from tunesmith.model.dtensor import is_dtensor, local_shard, replica_count, shard_like
from tunesmith.model.load import ComputeConfig, choose_compute, load_base, stored_dtype
from tunesmith.recipe.schema import FullTuning, LoraTuning, QloraTuning, Quantization

ON = ComputeConfig(torch.device("cpu"), torch.float32)
ALONE = ProcessGroup(RankInfo())


@pytest.fixture(scope="module", autouse=True)
def _one_of_one() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    path = tmp_path_factory.mktemp("rows") / "tokens.safetensors"
    write_tokens(path, random_rows(4, 1))
    return TokenDataset(path)


def whole(tiny: Path, tuning: str) -> Any:
    kind = FullTuning(method="full") if tuning == "full" else LoraTuning(method="lora", rank=2, alpha=4)
    quantization = None
    if tuning == "qlora":
        pytest.importorskip("bitsandbytes")
        quantization = Quantization()
    return make_trainable(load_base(ModelFolder("x", tiny), ON, quantization=quantization), kind, seed=0)


def divided(tiny: Path, tuning: str, **how: bool) -> Any:
    model = whole(tiny, tuning)
    shard(model, ON, ALONE, **how)
    return model


@pytest.mark.parametrize("how", [{}, {"by_node": True}, {"offload": True}])
@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_loss_and_gradients_are_those_of_the_whole(
    tuning: str, how: dict[str, bool], tiny: Path, tokens: TokenDataset
) -> None:
    found = []
    for model in (whole(tiny, tuning), divided(tiny, tuning, **how)):
        nll = token_loss(model, tokens.batch([0, 1], 2)).nll
        nll.sum().backward()
        found.append((nll, {n: local_shard(w.grad) for n, w in model.named_parameters() if w.grad is not None}))
    (nll, gradients), (other, others) = found
    assert torch.equal(nll, other)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def test_only_the_matrices_of_layers_are_divided(tiny: Path) -> None:
    model = divided(tiny, "full")
    names = {name for name, weight in model.named_parameters() if is_dtensor(weight)}
    assert names == {n for n, w in whole(tiny, "full").named_parameters() if ".layers." in n and w.ndim > 1}
    adapted = divided(tiny, "lora")
    assert not any(is_dtensor(weight) for weight in adapted.parameters() if weight.requires_grad)
    assert len(sharded_layers(adapted)) == 2
    assert is_sharded(adapted)
    assert not is_sharded(whole(tiny, "lora"))


def test_weights_of_4_bits_are_divided_and_counted_as_two(tiny: Path) -> None:
    model, undivided = divided(tiny, "qlora"), whole(tiny, "qlora")
    kinds = {weight.dtype for weight in model.parameters() if is_dtensor(weight)}
    assert kinds == {torch.uint8}
    assert count_parameters(model) == count_parameters(undivided)


def test_qlora_is_trained_measured_saved_reopened_and_divided(
    processor: str, tiny: Path, tokens: TokenDataset, tmp_path: Path
) -> None:
    """With bf16 units, bitsandbytes would repack the weights at the first measurement."""
    pytest.importorskip("bitsandbytes")
    compute, base, quantization = choose_compute(), ModelFolder("base", tiny), Quantization()
    assert compute.precision == processor
    batch = tokens.batch([0, 1], 2)

    def measured(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return token_loss(model.eval(), batch).nll

    def gradients(model: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        token_loss(model.train(), batch).nll.sum().backward()
        return {name: local_shard(w.grad).clone() for name, w in model.named_parameters() if w.grad is not None}

    def kept(model: Any) -> list[torch.Tensor]:
        layers = [one for one in model.modules() if type(one).__name__ == "Linear4bit"]
        return [t.clone() for one in layers for t in (one.weight, one.weight.quant_state.absmax)]

    model = make_trainable(
        load_base(base, compute, quantization=quantization), QloraTuning(method="qlora", rank=2, alpha=4), seed=0
    )
    before, losses = kept(model), [measured(model)]
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=0.01)
    for _ in range(4):
        gradients(model)
        optimizer.step()
        losses.append(measured(model))
    assert losses[-1].sum() < 0.9 * losses[0].sum()
    assert all(torch.equal(one, other) for one, other in zip(before, kept(model), strict=True))

    save(model, tmp_path, base=str(tiny))
    write_json(tmp_path / CARD, {"base": str(tiny), "quantization": quantization.model_dump()})
    reopened = open_model(ModelFolder("tuned", tmp_path, base), compute)
    assert all(torch.equal(measured(reopened), losses[-1]) for _ in range(2))

    wanted = gradients(model)
    shard(model, compute, ALONE)
    for _ in range(2):
        assert torch.equal(measured(model), losses[-1])
        found = gradients(model)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_masters_are_made_of_parts(tiny: Path, tmp_path: Path) -> None:
    stored = tmp_path / "bf16"
    load_base(ModelFolder("x", tiny), ON).bfloat16().save_pretrained(stored)
    model = ModelFolder("y", stored)
    assert (stored_dtype(model), stored_dtype(ModelFolder("x", tiny))) == (torch.bfloat16, torch.float32)
    read = make_trainable(load_base(model, ON, dtype=torch.bfloat16), FullTuning(method="full"), seed=0)
    shard(read, ON, ALONE, masters=torch.float32)
    assert {weight.dtype for weight in read.parameters()} == {torch.float32}
    expected = load_base(model, ON, dtype=torch.float32).state_dict()
    found = gather_full_state_dict(read, keep=True)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_weights_in_several_precisions_are_stored_in_none(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    save_file({name: w.bfloat16() if w.ndim > 1 else w for name, w in tensors.items()}, tmp_path / "model.safetensors")
    assert stored_dtype(ModelFolder("x", tmp_path)) is None


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match="no layers that could be divided"):
        shard(torch.nn.Linear(2, 2), ON, ALONE)


def test_weights_that_were_first_used_in_inference_can_be_trained(tiny: Path, tokens: TokenDataset) -> None:
    model = divided(tiny, "full")
    with torch.inference_mode():
        token_loss(model, tokens.batch([0], 2))
    token_loss(model, tokens.batch([0], 2)).nll.sum().backward()


def test_what_was_saved_whole_comes_back_in_parts(tiny: Path, tmp_path: Path) -> None:
    model = divided(tiny, "full")
    weights = gather_full_state_dict(model, keep=True)
    assert not any(map(is_dtensor, weights.values()))
    assert gather_full_state_dict(model, keep=False) == {}
    save(model, tmp_path / "saved", base="x", weights=weights)
    with torch.no_grad():
        for weight in model.parameters():
            local_shard(weight).zero_()
    assert all(weight.any() for name, weight in weights.items() if name.endswith("proj.weight")), "they are copies"
    restore_weights(model, tmp_path / "saved")
    assert all(torch.equal(one, weights[name]) for name, one in gather_full_state_dict(model, keep=True).items())


def test_parts_are_written_and_read(tiny: Path, tmp_path: Path) -> None:
    model = divided(tiny, "full")
    weights = dict(model.named_parameters())
    names = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    tensors = {f"{name}.exp_avg": weights[name].detach() for name in names}
    tensors |= {f"{name}.step": torch.tensor(3.0) for name in names}
    write_shards(tensors, tmp_path / "optimizer")
    found = read_shards(tmp_path / "optimizer", weights)
    assert found.keys() == tensors.keys()
    for name, one in found.items():
        assert is_dtensor(one) == is_dtensor(tensors[name])
        assert torch.equal(local_shard(one), local_shard(tensors[name]))
    plain = read_shards(tmp_path / "optimizer", {})
    assert not any(map(is_dtensor, plain.values()))


def test_a_disk_that_refuses_parts_is_told(tmp_path: Path) -> None:
    (tmp_path / "optimizer").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="optimizer"):
        write_shards({"a.step": torch.zeros(2)}, tmp_path / "optimizer")


def test_like_divides_what_has_the_shape_of_a_weight(tiny: Path) -> None:
    weight = dict(divided(tiny, "full", by_node=True).named_parameters())["model.layers.0.mlp.up_proj.weight"]
    assert is_dtensor(shard_like(torch.ones(64, 32), weight))
    assert not is_dtensor(shard_like(torch.tensor(1.0), weight))
    assert replica_count(weight) == 1


def test_a_pass_that_others_share_is_not_made_again(tokens: TokenDataset) -> None:
    tried = []

    def work(policy: MicroBatchPolicy) -> None:
        tried.append(policy)
        raise torch.OutOfMemoryError

    with pytest.raises(DoesNotFit, match="does not suffice for passes of up to 64 tokens") as told:
        OomRetry(MicroBatchPolicy(64), lockstep=True).run(work, tokens, [0, 1])
    assert len(tried) == 1
    assert "micro_batch_tokens" in str(told.value)


def test_answers_that_others_share_are_not_asked_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = divided(tiny, "lora")

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("tunesmith.inference.generate.slot_budget", lambda *_: None)
    monkeypatch.setattr("tunesmith.inference.generate._padded", full)
    with pytest.raises(DoesNotFit, match="to answer 32 prompts at once"):
        list(generate(model, [[3, 4], [5, 6]], stop_ids=[2], max_new_tokens=2))


class Others(ProcessGroup):
    """The only process, told that others are at work for so many rounds."""

    def __init__(self, rounds: int) -> None:
        super().__init__(RankInfo(0, 2, 0, 2))
        object.__setattr__(self, "said", [])
        object.__setattr__(self, "rounds", rounds)

    said: list[float]
    rounds: int

    def sum(self, *values: float) -> list[float]:
        self.said.append(values[0])
        return [values[0] + (len(self.said) <= self.rounds)]

    def all_gather(self, value: Any) -> list[Any]:
        return [value, "theirs"]


def test_idle_passes_go_on_as_long_as_others_have_some() -> None:
    others = Others(4)
    found = list(lockstep_micro_batches(others, iter("ab"), lambda: "-", sharded=True))
    assert found == [("a", True), ("b", True), ("-", False), ("-", False)]
    assert others.said == [1, 1, 0, 0, 0]
    assert list(lockstep_micro_batches(others, iter("ab"), lambda: "-", sharded=False)) == [("a", True), ("b", True)]
    assert len(others.said) == 5


def test_company_makes_as_many_calls_as_others(tiny: Path) -> None:
    model, others = divided(tiny, "lora"), Others(5)
    calls = []
    model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    with lockstep_forward(model, others):
        list(generate(model, [[3, 4]], stop_ids=[], max_new_tokens=3))
    assert (others.said, len(calls)) == ([1, 1, 1, 0, 0, 0], 5)
    with pytest.raises(ZeroDivisionError), lockstep_forward(model, others):
        1 / 0  # noqa: B018
    assert len(others.said) == 6, "who fails keeps nobody company"
    with lockstep_forward(whole(tiny, "lora"), others):
        pass
    assert len(others.said) == 6


def test_a_reason_of_any_process_holds_for_all(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.distributed.fsdp.current_group", lambda: Others(0))
    assert agree_on_reason(divided(tiny, "lora"), None) == "theirs"
    assert agree_on_reason(whole(tiny, "lora"), None) is None


def test_processes_on_one_processor_share_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.distributed.fsdp.process_memory_limit_gib", lambda: 12.0)
    assert memory_budget(ON, ProcessGroup(RankInfo(0, 8, 0, 4))).available_gib == 3


def test_machines_with_different_numbers_of_processes_have_no_parts_each(tiny: Path) -> None:
    with pytest.raises(RecipeError, match="different numbers of processes"):
        shard(whole(tiny, "full"), ON, Others(0), by_node=True)
