"""What `plan` takes the machine for is what torch takes it for."""

import os
import stat
from pathlib import Path

import pytest

from tunesmith.estimate import hardware as module
from tunesmith.estimate.hardware import (
    PRECISION_BYTES,
    available_memory_gib,
    choose_precision,
    detect_hardware,
    process_memory_limit_gib,
)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `nvidia-smi` that says what the file beside it holds, and keeps what it was asked."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {tmp_path}/told\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module.metadata, "version", lambda name: "2.13.0")
    return tmp_path


def test_a_processor_has_bf16_where_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = detect_hardware()
    assert (found.device, found.has_bf16) == ("cpu", bool(torch.cpu._is_avx512_bf16_supported()))
    assert 0 < found.memory_gib == pytest.approx(process_memory_limit_gib(), rel=0.2)


@pytest.mark.parametrize(
    ("told", "has_bf16", "memory"), [("15360, 7.0", False, 15.0), ("81559, 9.0\n81559, 9.0", True, 79.6)]
)
def test_a_gpu_is_asked_for(smi: Path, told: str, has_bf16: bool, memory: float) -> None:
    (smi / "told").write_text(told)
    found = detect_hardware()
    assert (found.device, found.has_bf16) == ("cuda", has_bf16)
    assert found.memory_gib == pytest.approx(memory - 0.6, abs=0.1)  # less what CUDA itself takes


def test_the_gpu_that_is_visible_is_asked_for(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (smi / "told").write_text("1000, 8.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert detect_hardware().device == "cuda"
    assert "--id=2 " in (smi / "asked").read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_hardware().device == "cpu"


def test_a_torch_without_cuda_computes_on_the_processor(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (smi / "told").write_text("81559, 9.0")
    monkeypatch.setattr(module.metadata, "version", lambda name: "2.13.0+cpu")
    assert detect_hardware().device == "cpu"


@pytest.mark.parametrize("told", ["", "No devices were found", "[N/A], [N/A]"])
def test_a_gpu_that_says_nothing_is_none(smi: Path, told: str) -> None:
    (smi / "told").write_text(told)
    assert detect_hardware().device == "cpu"


@pytest.mark.parametrize(
    ("asked", "device", "has_bf16", "quantized", "expected"),
    [
        ("auto", "cpu", False, False, "fp32"), ("auto", "cpu", True, False, "bf16"),
        ("auto", "cuda", False, False, "fp32"), ("auto", "cuda", False, True, "fp16"),
        ("auto", "cpu", False, True, "fp32"), ("fp16", "cuda", True, False, "fp16"),
        ("fp32", "cuda", True, True, "fp32"),
    ],
)  # fmt: skip
def test_precision(asked: str, device: str, has_bf16: bool, quantized: bool, expected: str) -> None:
    found = choose_precision(asked, device, has_bf16=has_bf16, quantized=quantized)  # type: ignore[arg-type]
    assert found == expected
    assert PRECISION_BYTES[found] == (4 if expected == "fp32" else 2)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_tightest_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A job of Slurm's is a group in a group; the page cache of either can be dropped."""
    limit, current, prefix = module._V1_NAMES if kind == "v1" else module._V2_NAMES
    root = tmp_path / "sys"
    for group, most, used in ((root / "slurm", 3 * 2**30, 2**30), (root / "slurm" / "job", 0, 2**30)):
        group.mkdir(parents=True)
        (group / limit).write_text(str(most) if most else ("max" if kind == "v2" else str(2**62)))
        (group / current).write_text(str(used))
        (group / "memory.stat").write_text(f"{prefix}active_file {2**28}\n{prefix}inactive_file {2**28}\n")
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/slurm/job\n3:cpu:/elsewhere\n" if kind == "v1" else "0::/slurm/job\n")
    monkeypatch.setattr(module, "_OWN_GROUPS", own)
    monkeypatch.setattr(module, f"_{kind.upper()}", root)
    assert available_memory_gib() == pytest.approx(2.5)
