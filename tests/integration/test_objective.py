"""A toy objective on pairs trains, validates, resumes, packs and runs on two ranks, equal to a hand-written loop."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.contract.sources import ROOT
from tests.integration.test_killed import steps_done, wait_until
from tests.integration.test_parallel import done, together
from tests.support.multi_process import train_case
from tests.support.pairs import BETA, PAIRS, SIGN, WEIGHT, prepared_pairs, random_pairs
from tests.support.tiny import one_thread
from tests.support.tokens import write_examples
from tests.unit.train.conftest import FULL, recipe_of

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import SEQUENCE_LENGTHS, TokenizedExample
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.sampler import batch_indices
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.estimate.memory import LOGITS_CHUNK
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.recipe.schedule import learning_rate_at, plan_steps
from tunesmith.train.optim import make_optimizer
from tunesmith.train.train import train

pytestmark = pytest.mark.slow
CASE = {"tuning": "full", "precision": "fp64", "objective": "pairs"}
WAYS: list[dict[str, Any]] = [
    {**CASE, "micro_batch": 1}, {**CASE, "micro_batch": 3}, {**CASE, "micro_batch": 8, "packing": "always"},
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "tokens.safetensors"
    write_examples(path, random_pairs(24, 1))
    return path


def margin(model: Any, pair: TokenizedExample) -> torch.Tensor:
    """Return the margin of a pair from two passes of the plain model, each over one answer."""
    total, begin = torch.zeros((), dtype=torch.float64), 0
    for length, sign in zip(pair.columns[SEQUENCE_LENGTHS], pair.columns[SIGN], strict=True):
        end = begin + int(length)
        ids = torch.tensor(pair.input_ids[begin:end])
        found = model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        weights = torch.tensor(pair.columns[WEIGHT][begin:end], dtype=torch.float64) * torch.tensor(
            pair.trained[begin:end]
        )
        total = total + sign * (found.gather(1, ids[1:, None])[:, 0] * weights[1:]).sum()
        begin = end
    return total


@pytest.fixture(scope="module")
def by_hand(gpt2: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Return the losses of every step, the measures of a final validation over all rows, and the weights."""
    recipe, pairs = recipe_of(gpt2, FULL, examples_per_step=8, epochs=2), random_pairs(24, 1)
    model = load_base(ModelFolder("x", gpt2), ComputeConfig(torch.device("cpu"), torch.float64), dtype=torch.float64)
    model.requires_grad_(True).train()
    optimizer, plan, losses = make_optimizer(model, recipe.train), plan_steps(recipe, len(pairs)), []
    for step in range(plan.total_steps):
        chosen = batch_indices(step, rows=24, examples_per_step=8, total_examples=plan.total_examples, seed=recipe.seed)
        loss = torch.stack([-torch.nn.functional.logsigmoid(BETA * margin(model, pairs[row])) for row in chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(recipe, plan, step)
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        found = torch.stack([margin(model.eval(), pair) for pair in pairs])
    valid = [float(torch.nn.functional.softplus(-BETA * found).mean()), float((found > 0).double().mean())]
    return losses, valid, {name: weight.detach() for name, weight in model.named_parameters()}


def agree(by_hand: tuple[Any, ...], facts: list[Any], weights: dict[str, torch.Tensor]) -> None:
    losses, valid, wanted = by_hand
    *steps, measured = facts
    assert [step[0] for step in steps] == pytest.approx(losses, rel=1e-9)
    assert measured[:2] == pytest.approx(valid, rel=1e-9)
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", WAYS, ids=lambda case: f"{case['micro_batch']}-{case.get('packing', 'never')}")
def test_it_equals_a_hand_written_loop(by_hand: Any, gpt2: Path, rows: Path, case: dict[str, Any]) -> None:
    tokens = TokenDataset(rows)
    assert (
        tokens.trained_tokens(range(8)) > LOGITS_CHUNK
    )  # so the output layer is trained in chunks, with weights that differ
    with one_thread():
        agree(by_hand, *train_case(gpt2, rows, case, ProcessGroup()))


def test_it_equals_a_hand_written_loop_on_two_ranks(by_hand: Any, gpt2: Path, rows: Path, tmp_path: Path) -> None:
    program = str(ROOT / "tests" / "support" / "multi_process.py")
    done(together(2, program, str(gpt2), str(rows), str(tmp_path), json.dumps(WAYS)))
    for number in range(len(WAYS)):
        for rank in range(2):
            facts = json.loads((tmp_path / f"{number}-{rank}.json").read_text())
            agree(by_hand, facts, load_file(tmp_path / f"{number}-{rank}.safetensors"))


def test_packed_pairs_share_their_prompt(rows: Path) -> None:
    tokens = TokenDataset(rows)
    for group in MicroBatchPolicy(10**6, 1, "always", packed_attention=True).split(tokens, range(24)):
        assert group.shared is not None
        assert group.shared >= 7
        assert tokens.packed_tokens(group.rows, group.shared) == tokens.lengths[group.rows[0]] - group.shared


def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_run(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "support" / "pairs.py"), str(tiny)]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "src")))}

    def start(run: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, str(tmp_path / run)], env={**os.environ, **environment}, stderr=subprocess.DEVNULL
        )

    whole, killed = prepared_pairs(tmp_path / "whole", tiny), prepared_pairs(tmp_path / "killed", tiny)
    assert start("whole").wait(240) == 0
    process = start("killed")
    assert wait_until(process, lambda: steps_done(killed.run) >= 20)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert start("killed").wait(240) == 0
    assert killed.log() == whole.log()
    assert killed.steps == whole.steps
    assert killed.result(killed.steps[-1]) == whole.result(whole.steps[-1])
    manifest = killed.run.manifest("train") or {}
    assert (manifest["steps"], manifest["chosen_by"]) == (60, "pair_accuracy")
    assert "packed" in manifest["passes"]
    values = [line["pair_accuracy"] for line in whole.log() if line["kind"] == "valid"][1:]  # not before the first step
    assert manifest["best_value"] == max(values)


def test_rows_of_another_objective_are_refused(tiny: Path, tmp_path: Path) -> None:
    made = prepared_pairs(tmp_path / "run", tiny)
    for split in ("train", "valid"):
        pairs = random_pairs(6, 1)
        write_examples(
            made.run.tokens(split), [TokenizedExample(one.example_id, one.input_ids, one.trained) for one in pairs]
        )
    with pytest.raises(RecipeError):
        train(made.recipe, made.run, PAIRS)
