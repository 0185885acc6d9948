"""Sharded models, here on one rank; tests/integration/test_sharding.py has several."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.errors import raises
from tests.support.tokens import write_examples
from tests.unit.train.conftest import random_rows
from torch import distributed

from tunesmith.core.dist_env import RankInfo
from tunesmith.core.errors import DoesNotFit, RecipeError
from tunesmith.core.files import write_json
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
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
from tunesmith.model.adapters import open_model, restore_weights
from tunesmith.model.adapters import save_model as save
from tunesmith.model.dtensor import is_dtensor, local_shard, replica_count, shard_like
from tunesmith.model.load import ComputeConfig, choose_compute, load_base, stored_dtype
from tunesmith.model.trainable import count_parameters, make_trainable
from tunesmith.recipe.tuning import FullTuning, LoraTuning, QloraTuning, Quantization

CPU = ComputeConfig(torch.device("cpu"), torch.float32)
ALONE = ProcessGroup(RankInfo())


@pytest.fixture(scope="module", autouse=True)
def _single_rank_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    path = tmp_path_factory.mktemp("rows") / "tokens.safetensors"
    write_examples(path, random_rows(4, 1))
    return TokenDataset(path)


def replicated(tiny: Path, tuning: str) -> Any:
    kind = FullTuning(method="full") if tuning == "full" else LoraTuning(method="lora", rank=2, alpha=4)
    quantization = None
    if tuning == "qlora":
        pytest.importorskip("bitsandbytes")
        quantization = Quantization()
    return make_trainable(load_base(ModelFolder("x", tiny), CPU, quantization=quantization), kind, seed=0)


def sharded(tiny: Path, tuning: str, **options: bool) -> Any:
    model = replicated(tiny, tuning)
    shard(model, CPU, ALONE, **options)
    return model


@pytest.mark.parametrize("options", [{}, {"by_node": True}, {"offload": True}])
@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_sharded_loss_and_gradients_equal_replicated(
    tuning: str, options: dict[str, bool], tiny: Path, tokens: TokenDataset
) -> None:
    results = []
    for model in (replicated(tiny, tuning), sharded(tiny, tuning, **options)):
        nll = token_loss(model, tokens.batch([0, 1], 2)).nll
        nll.sum().backward()
        results.append((nll, {n: local_shard(w.grad) for n, w in model.named_parameters() if w.grad is not None}))
    (nll, gradients), (sharded_nll, sharded_gradients) = results
    assert torch.equal(nll, sharded_nll)
    assert gradients.keys() == sharded_gradients.keys()
    assert all(torch.equal(gradients[name], sharded_gradients[name]) for name in gradients)


def test_only_matrices_inside_layers_are_sharded(tiny: Path) -> None:
    model = sharded(tiny, "full")
    names = {name for name, weight in model.named_parameters() if is_dtensor(weight)}
    assert names == {n for n, w in replicated(tiny, "full").named_parameters() if ".layers." in n and w.ndim > 1}
    with_adapter = sharded(tiny, "lora")
    assert not any(is_dtensor(weight) for weight in with_adapter.parameters() if weight.requires_grad)
    assert len(sharded_layers(with_adapter)) == 2
    assert is_sharded(with_adapter)
    assert not is_sharded(replicated(tiny, "lora"))


def test_sharded_4_bit_weights_count_as_two_parameters_per_byte(tiny: Path) -> None:
    model, unsharded = sharded(tiny, "qlora"), replicated(tiny, "qlora")
    kinds = {weight.dtype for weight in model.parameters() if is_dtensor(weight)}
    assert kinds == {torch.uint8}
    assert count_parameters(model) == count_parameters(unsharded)


def test_qlora_trains_saves_reopens_and_shards(
    processor: str, tiny: Path, tokens: TokenDataset, tmp_path: Path
) -> None:
    """On processors with bf16 units, bitsandbytes would repack the weights in the first evaluation."""
    pytest.importorskip("bitsandbytes")
    compute, base, quantization = choose_compute(), ModelFolder("base", tiny), Quantization()
    assert compute.precision == processor
    batch = tokens.batch([0, 1], 2)

    def evaluate(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return token_loss(model.eval(), batch).nll

    def gradients(model: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        token_loss(model.train(), batch).nll.sum().backward()
        return {name: local_shard(w.grad).clone() for name, w in model.named_parameters() if w.grad is not None}

    def quantized(model: Any) -> list[torch.Tensor]:
        layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
        return [t.clone() for layer in layers for t in (layer.weight, layer.weight.quant_state.absmax)]

    model = make_trainable(
        load_base(base, compute, quantization=quantization), QloraTuning(method="qlora", rank=2, alpha=4), seed=0
    )
    before, losses = quantized(model), [evaluate(model)]
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=0.01)
    for _ in range(4):
        gradients(model)
        optimizer.step()
        losses.append(evaluate(model))
    assert losses[-1].sum() < 0.9 * losses[0].sum()
    assert all(torch.equal(old, new) for old, new in zip(before, quantized(model), strict=True))

    save(model, tmp_path, base=str(tiny))
    write_json(tmp_path / CARD, {"base": str(tiny), "quantization": quantization.model_dump()})
    reopened = open_model(ModelFolder("tuned", tmp_path, base), compute)
    assert all(torch.equal(evaluate(reopened), losses[-1]) for _ in range(2))

    expected = gradients(model)
    shard(model, compute, ALONE)
    for _ in range(2):
        assert torch.equal(evaluate(model), losses[-1])
        actual = gradients(model)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_master_weights_are_converted_after_sharding(tiny: Path, tmp_path: Path) -> None:
    stored = tmp_path / "bf16"
    load_base(ModelFolder("x", tiny), CPU).bfloat16().save_pretrained(stored)
    model = ModelFolder("y", stored)
    assert (stored_dtype(model), stored_dtype(ModelFolder("x", tiny))) == (torch.bfloat16, torch.float32)
    loaded = make_trainable(load_base(model, CPU, dtype=torch.bfloat16), FullTuning(method="full"), seed=0)
    shard(loaded, CPU, ALONE, master_dtype=torch.float32)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    expected = load_base(model, CPU, dtype=torch.float32).state_dict()
    gathered = gather_full_state_dict(loaded, keep=True)
    assert all(torch.equal(gathered[name], expected[name]) for name in gathered)


def test_stored_dtype_is_none_for_mixed_precisions(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    save_file({name: w.bfloat16() if w.ndim > 1 else w for name, w in tensors.items()}, tmp_path / "model.safetensors")
    assert stored_dtype(ModelFolder("x", tmp_path)) is None


def test_sharding_a_model_without_layers_is_refused() -> None:
    with raises(RecipeError, "sharding-unsupported", where="model.base"):
        shard(torch.nn.Linear(2, 2), CPU, ALONE)


def test_sharded_weights_first_used_in_inference_mode_can_be_trained(tiny: Path, tokens: TokenDataset) -> None:
    model = sharded(tiny, "full")
    with torch.inference_mode():
        token_loss(model, tokens.batch([0], 2))
    token_loss(model, tokens.batch([0], 2)).nll.sum().backward()


def test_full_checkpoint_restores_into_a_sharded_model(tiny: Path, tmp_path: Path) -> None:
    model = sharded(tiny, "full")
    weights = gather_full_state_dict(model, keep=True)
    assert not any(map(is_dtensor, weights.values()))
    assert gather_full_state_dict(model, keep=False) == {}
    save(model, tmp_path / "saved", base="x", weights=weights)
    with torch.no_grad():
        for weight in model.parameters():
            local_shard(weight).zero_()
    assert all(weight.any() for name, weight in weights.items() if name.endswith("proj.weight")), (
        "gathered weights must be copies"
    )
    restore_weights(model, tmp_path / "saved")
    assert all(torch.equal(weight, weights[name]) for name, weight in gather_full_state_dict(model, keep=True).items())


def test_shards_are_written_and_read(tiny: Path, tmp_path: Path) -> None:
    model = sharded(tiny, "full")
    weights = dict(model.named_parameters())
    names = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    tensors = {f"{name}.exp_avg": weights[name].detach() for name in names}
    tensors |= {f"{name}.step": torch.tensor(3.0) for name in names}
    write_shards(tensors, tmp_path / "optimizer")
    restored = read_shards(tmp_path / "optimizer", weights)
    assert restored.keys() == tensors.keys()
    for name, tensor in restored.items():
        assert is_dtensor(tensor) == is_dtensor(tensors[name])
        assert torch.equal(local_shard(tensor), local_shard(tensors[name]))
    plain = read_shards(tmp_path / "optimizer", {})
    assert not any(map(is_dtensor, plain.values()))


def test_write_shards_raises_the_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "optimizer").write_text("a file instead of the folder")
    with pytest.raises(OSError) as caught:  # noqa: PT011 (which subclass depends on the system)
        write_shards({"a.step": torch.zeros(2)}, tmp_path / "optimizer")
    assert "optimizer" in str(caught.value)


def test_shard_like_shards_only_tensors_of_the_weights_shape(tiny: Path) -> None:
    weight = dict(sharded(tiny, "full", by_node=True).named_parameters())["model.layers.0.mlp.up_proj.weight"]
    assert is_dtensor(shard_like(torch.ones(64, 32), weight))
    assert not is_dtensor(shard_like(torch.tensor(1.0), weight))
    assert replica_count(weight) == 1


def test_oom_in_lockstep_is_not_retried(tokens: TokenDataset) -> None:
    attempts = []

    def work(policy: MicroBatchPolicy) -> None:
        attempts.append(policy)
        raise torch.OutOfMemoryError

    with raises(DoesNotFit, "out-of-memory", "64 tokens", "micro_batch_tokens"):
        OomRetry(MicroBatchPolicy(64), lockstep=True).run(work, tokens, [0, 1])
    assert len(attempts) == 1


def test_oom_while_generating_with_a_sharded_model_is_not_retried(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharded(tiny, "lora")

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("tunesmith.inference.generate.slot_budget", lambda *_: None)
    monkeypatch.setattr("tunesmith.inference.generate._generate_padded", out_of_memory)
    with raises(DoesNotFit, "out-of-memory", "32 prompts"):
        list(generate(model, [[3, 4], [5, 6]], stop_ids=[2], max_new_tokens=2))


class FakeGroup(ProcessGroup):
    """One rank of two, of which the other is simulated: it makes `rounds` forward passes."""

    def __init__(self, rounds: int) -> None:
        super().__init__(RankInfo(0, 2, 0, 2))
        object.__setattr__(self, "sent", [])
        object.__setattr__(self, "rounds", rounds)

    sent: list[float]
    rounds: int

    def sum(self, *values: float) -> list[float]:
        self.sent.append(values[0])
        return [values[0] + (len(self.sent) <= self.rounds)]

    def all_gather(self, value: Any) -> list[Any]:
        return [value, "theirs"]


def test_idle_micro_batches_continue_until_all_ranks_are_done() -> None:
    group = FakeGroup(4)
    batches = list(lockstep_micro_batches(group, iter("ab"), lambda: "-", sharded=True))
    assert batches == [("a", True), ("b", True), ("-", False), ("-", False)]
    assert group.sent == [1, 1, 0, 0, 0]
    assert list(lockstep_micro_batches(group, iter("ab"), lambda: "-", sharded=False)) == [("a", True), ("b", True)]
    assert len(group.sent) == 5


def test_lockstep_forward_makes_as_many_calls_as_other_ranks(tiny: Path) -> None:
    model, group = sharded(tiny, "lora"), FakeGroup(5)
    calls = []
    model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    with lockstep_forward(model, group):
        list(generate(model, [[3, 4]], stop_ids=[], max_new_tokens=3))
    assert (group.sent, len(calls)) == ([1, 1, 1, 0, 0, 0], 5)
    with pytest.raises(ZeroDivisionError), lockstep_forward(model, group):
        1 / 0  # noqa: B018
    assert len(group.sent) == 6, "a failed rank makes no idle calls"
    with lockstep_forward(replicated(tiny, "lora"), group):
        pass
    assert len(group.sent) == 6


def test_agree_on_reason_takes_the_reason_of_any_rank(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.distributed.fsdp.current_group", lambda: FakeGroup(0))
    assert agree_on_reason(sharded(tiny, "lora"), None) == "theirs"
    assert agree_on_reason(replicated(tiny, "lora"), None) is None


def test_ranks_on_one_machine_share_its_cpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.distributed.fsdp.process_memory_limit_gib", lambda: 12.0)
    assert memory_budget(CPU, ProcessGroup(RankInfo(0, 8, 0, 4))).available_gib == 3


def test_sharding_by_node_requires_equal_numbers_of_processes(tiny: Path) -> None:
    with raises(RecipeError, "uneven-processes", where="launch.sharding"):
        shard(replicated(tiny, "full"), CPU, FakeGroup(0), by_node=True)
