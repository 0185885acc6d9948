"""Several ranks train as one process does: the same steps, one writer, one exit code."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tests.contract.sources import ROOT
from tests.integration.test_killed import steps_done, wait_until
from tests.support import multi_process
from tests.support.multi_process import train_case
from tests.support.tiny import one_thread, recipe, save_model
from tests.support.tokens import write_examples
from tests.unit.train.conftest import random_rows

from tunesmith import run_recipe
from tunesmith.core.files import MANIFEST, read_json
from tunesmith.core.jsonl import read_jsonl, read_whole_lines
from tunesmith.core.rundir import RunDir
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.fetch.reference import resolve

pytestmark = pytest.mark.slow
ROWS = 24
SHARES = [("none", "fp64", (8, 2, 1)), ("none", "fp32", (8, 2, 1)), ("full", "fp64", (8, 2, 1)), ("full", "fp32", (2,)),
          ("node", "fp64", (2,))]  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"sharding": sharding, "tuning": tuning, "precision": precision, "micro_batch": size}
    for tuning in ("lora", "full")
    for sharding, precision, sizes in SHARES
    for size in sizes
] + [
    {"sharding": sharding, "tuning": "full", "optimizer": "muon", "precision": "fp64", "micro_batch": 2}
    for sharding in ("none", "full", "node")
]
# While a file `slow` exists in the program's folder, every pass of a validation is slow and writes a line.
SLOW_TO_VALIDATE = """
import os, sys, time, torch
from tunesmith.train import loop
quick = loop.token_loss
def slow(*told):
    here = os.path.dirname(sys.argv[0])
    if torch.is_inference_mode_enabled() and os.path.exists(os.path.join(here, "slow")):
        open(os.path.join(here, "passes"), "a").write("pass\\n")
        time.sleep(5)
    return quick(*told)
loop.token_loss = slow
"""
# Rank 1 runs out of memory with more than one row per micro-batch.
LITTLE_MEMORY = """
import os, torch
from tunesmith.train import loop
of_any_size = loop.token_loss
def little(model, batch):
    if os.environ["RANK"] == "1" and torch.is_grad_enabled() and int(batch.segment_ids.max()) > 0:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return of_any_size(model, batch)
loop.token_loss = little
"""
# The clock of rank 1 is three days ahead.
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
AHEAD = f"""
import datetime, os, sys
if os.environ["RANK"] == "1" and "FAKETIME" not in os.environ:
    clock = {{"LD_PRELOAD": "{FAKETIME}", "FAKETIME": "+3d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | clock)
print("rank", os.environ["RANK"], "began on day", datetime.date.today().toordinal(), file=sys.stderr)
"""
BAD = {"tuning": "lora", "precision": "fp32", "micro_batch": 4, "bad": 1}


def together(count: int, *command: str) -> subprocess.Popen[bytes]:
    """Start processes with torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "src")))}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.Popen([*torchrun, *command], stderr=subprocess.PIPE, env=environment)


def command_after(preparation: str, folder: Path) -> str:
    """Write a program that runs `preparation` in every process and then the command line; return its file."""
    program = folder / "program.py"
    program.write_text(f"{preparation}\nfrom tunesmith.cli import main\nmain()\n", encoding="utf-8")
    return str(program)


def done(process: subprocess.Popen[bytes]) -> str:
    """Wait for processes to succeed; return their output."""
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said.decode()
    return said.decode()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "tokens.safetensors"
    write_examples(path, random_rows(ROWS, 1))
    return path


# --- one trajectory ---


@functools.cache
def by_one(model: Path, rows: Path, **case: Any) -> tuple[list[Any], dict[str, Any]]:
    return train_case(model, rows, case, ProcessGroup())


@pytest.mark.parametrize("world", [2, 4])
def test_many_processes_take_the_steps_of_one(world: int, gpt2: Path, rows: Path, tmp_path: Path) -> None:
    cases = json.dumps([*CASES, BAD])
    done(together(world, multi_process.__file__, str(gpt2), str(rows), str(tmp_path), cases))
    for number, case in enumerate(CASES):
        facts, weights = by_one(gpt2, rows, **{key: value for key, value in case.items() if key != "sharding"})
        exact = case["precision"] == "fp64"
        rel = 1e-9 if exact else 2e-5
        found = [json.loads((tmp_path / f"{number}-{rank}.json").read_text()) for rank in range(world)]
        assert all(one == found[0] for one in found), "all processes report the same numbers"
        for one, many in zip(facts, found[0], strict=True):
            assert many == pytest.approx(one, rel=rel)
        ended = [load_file(tmp_path / f"{number}-{rank}.safetensors") for rank in range(world)]
        for name in weights:
            assert all(torch.equal(one[name], ended[0][name]) for one in ended)
        off = torch.cat([(ended[0][name] - weight).flatten() for name, weight in weights.items()])
        size = torch.cat([weight.flatten() for weight in weights.values()]).norm()
        assert float(off.norm() / size) < (1e-9 if exact else 1e-3)
        if len(differing := off[off != 0].sign()) > 100:  # rounding goes both ways
            assert abs(float(differing.mean())) < 5 / len(differing) ** 0.5 + 0.1
    stopped = [json.loads((tmp_path / f"{len(CASES)}-{rank}.json").read_text()) for rank in range(world)]
    assert all(one == stopped[0] for one in stopped)
    assert "the loss became nan; the weights were not updated with it" in stopped[0][0]


# --- runs ---


def of_60_steps(folder: Path, *, valid: dict[str, Any], **sections: Any) -> Path:
    """Write a recipe that is long enough to be interrupted; return its file."""
    model = save_model(folder / "model", "llama")
    steps = {"learning_rate": 0.01, "epochs": 20, "max_steps": 60, "examples_per_step": 8, "save_every_steps": 5}
    return recipe(folder, model, train=steps | valid, **sections)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    valid = {"valid_every_steps": 20, "valid_metrics": ["chrf"], "valid_rows": 5, "select_best_by": "chrf"}
    return of_60_steps(tmp_path_factory.mktemp("recipe"), valid=valid)


@pytest.fixture(scope="module")
def alone(file: Path) -> RunDir:
    return run_recipe(file, out=file.parent / "alone")


def steps(run: RunDir) -> list[list[float]]:
    lines = [line for line in read_whole_lines(run.metrics) if line["kind"] == "step"]
    return [[line["step"], line["loss"], line["learning_rate"], line["tokens"]] for line in lines]


def weights(run: RunDir) -> torch.Tensor:
    (file,) = resolve(f"run:{run.path}").path.glob("*model.safetensors")
    found = load_file(file)
    return torch.cat([found[name].flatten() for name in sorted(found)])


def same(run: RunDir, alone: RunDir) -> bool:
    """Return whether two runs have the same steps and final weights, up to rounding."""
    assert steps(run) == [pytest.approx(one, rel=1e-4) for one in steps(alone)]
    return bool(torch.allclose(weights(run), weights(alone), atol=2e-3))


def test_a_run_of_two_ranks_reaches_its_verdict(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    said = done(together(2, "-m", "tunesmith", "run", str(file), "--out", str(run)))
    assert same(run, alone)
    assert said.count("train: starts") == 1
    assert said.count("step 20: validation loss") == 1
    assert "step 20: validation loss" in run.rank_log(1).read_text()
    manifest = run.manifest("train")
    assert manifest is not None
    assert manifest["processes"] == 2
    assert read_json(run.verdict)["verdict"] == read_json(alone.verdict)["verdict"]
    for name in ("base", "tuned"):
        made = [read_jsonl(one.evaluation(name) / "generations.jsonl") for one in (run, alone)]
        many, one = ({line["id"]: line["prediction"] for line in lines} for lines in made)
        assert many.keys() == one.keys()
        assert sum(many[i] == one[i] for i in one) >= len(one) - 1, "rounding may turn a tie of two tokens"
        assert sorted(path.name for path in run.evaluation(name).iterdir()) == sorted(
            path.name for path in alone.evaluation(name).iterdir()
        )
    answered = [[json.loads(line)["id"] for line in one.valid_answers(60).open()] for one in (run, alone)]
    assert answered[0] == answered[1], "every row is answered once, in the order of the rows"
    assert len(answered[0]) == 5


def test_a_signal_to_all_ranks_saves_once_and_one_process_resumes(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    process = together(2, "-m", "tunesmith", "train", str(file), "--out", str(run))
    assert wait_until(process, lambda: steps_done(run) >= 7)
    process.send_signal(
        signal.SIGTERM
    )  # torchrun forwards it, and kills ranks that have not ended within half a minute
    _, said = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "stopped by SIGTERM; everything finished so far is kept" in said.decode()
    saved = max(int(path.name[5:]) for path in run.checkpoints.glob("step-*"))
    assert saved == steps_done(run) < 60
    run_recipe(file, out=run.path)
    assert same(run, alone)


def test_a_signal_ends_a_long_validation(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run, slow = RunDir(tmp_path / "run"), command_after(SLOW_TO_VALIDATE, tmp_path)
    one_by_one = ["train.micro_batch=1", "train.packing=never"]
    process = together(2, slow, "train", str(file), *one_by_one, "--out", str(run))
    assert wait_until(process, lambda: steps_done(run) >= 7)
    (tmp_path / "slow").touch()
    passes = tmp_path / "passes"
    assert wait_until(process, passes.exists)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert "stopped by SIGTERM; everything finished so far is kept" in said.decode()
    valid = (run.manifest("prepare") or {})["counts"]["valid"]
    assert 1 <= len(passes.read_text().splitlines()) <= 4 < valid, "a pass of each or two, and not all of them"
    stopped_at = steps_done(run)
    assert run.checkpoint(stopped_at).exists()
    assert validated(run) == list(range(0, stopped_at, 20)), "what was stopped does not count"
    run_recipe(file, one_by_one, out=run.path)
    assert validated(run) == [0, 20, 40, 60]
    assert same(run, alone)


def test_out_of_memory_on_one_rank_does_not_affect_the_others(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run, little = RunDir(tmp_path / "run"), command_after(LITTLE_MEMORY, tmp_path)
    said = done(together(2, little, "train", str(file), "--out", str(run)))
    less = "out of memory: retrying with 1 rows per micro-batch"
    assert (less in run.rank_log(1).read_text(), less in said) == (True, False)
    assert same(run, alone)


@pytest.mark.skipif(FAKETIME is None, reason="needs Debian's package faketime")
def test_clocks_may_differ(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    said = done(together(2, command_after(AHEAD, tmp_path), "run", str(file), "--out", str(run)))
    days = dict(re.findall(r"rank (\d) began on day (\d+)", said))
    assert int(days["1"]) - int(days["0"]) >= 3
    assert same(run, alone)
    assert read_json(run.verdict)["verdict"] == read_json(alone.verdict)["verdict"]


def validated(run: RunDir) -> list[int]:
    return [line["step"] for line in read_whole_lines(run.metrics) if line["kind"] == "valid"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_resumes(rank: int, file: Path, alone: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    command = ["-m", "tunesmith", "train", str(file), "--out", str(run)]
    process = together(2, *command)
    # A checkpoint is written in the background, and the run resumes from it.
    assert wait_until(process, lambda: steps_done(run) >= 7 and (run.checkpoint(5) / MANIFEST).exists())
    workers = dict(ranks_of(process))
    workers[rank].kill()
    process.communicate(timeout=240)  # the others' timeout is half an hour
    assert process.returncode != 0
    _, left = psutil.wait_procs(list(workers.values()), timeout=240)
    assert left == []
    assert done(together(2, *command)).count("resuming from step") == 1
    assert same(run, alone)


def ranks_of(process: subprocess.Popen[bytes]) -> Iterator[tuple[int, psutil.Process]]:
    for child in psutil.Process(process.pid).children(recursive=True):
        if (rank := child.environ().get("RANK")) is not None:
            yield int(rank), child


def test_ranks_with_different_settings_are_refused(file: Path, tmp_path: Path) -> None:
    differs = "import os, sys\nif os.environ['RANK'] == '1':\n    sys.argv.insert(3, 'train.weight_decay=0.5')"
    out = tmp_path / "run"
    process = together(2, command_after(differs, tmp_path), "train", str(file), "--out", str(out))
    _, said = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "rank 1 differ from those of rank 0: train.weight_decay" in said.decode()
    assert not (out / "checkpoints").exists()


def test_the_recipe_may_ask_for_torchrun(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    command = [sys.executable, "-m", "tunesmith", "train", str(file), "--on", "torchrun", "launch.processes=2"]
    done = subprocess.run([*command, "--out", str(run), "--json"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(run), "said once, by the first"
    manifest = run.manifest("train")
    assert manifest is not None
    assert manifest["processes"] == 2
    assert same(run, alone)
    fails = [*command, "train.learning_rate=1e30", "--out", str(tmp_path / "fails")]
    assert subprocess.run(fails, capture_output=True, timeout=240).returncode == 7, "and not 1, as torchrun would"
